"""One vLLM engine in this process: its modes, and weights that change under running requests."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serl.config import ExperimentConfig
from serl.models.weights import named_weights
from serl.serving.engine import EngineThread
from serl.serving.engine_options import build_engine
from serl.serving.messages import Answer, Request, make_request
from serl.serving.transfer.sender import Weights
from serl.serving.transfer.shared_memory import SharedMemorySender
from serl.serving.weights_folder import claim_folder, release_folder
from serl.types import Sampling
from tools.gpu_check.policy import CONTRAST, TOLERANCE, make_experiment, make_policy, mismatch, save_policy
from tools.gpu_check.results import Report, require

if TYPE_CHECKING:
    from vllm import LLMEngine

_TIMEOUT_S = 150.0
_NUM_REQUESTS = 32
_LONG = 200
_SHORT = 24


def engine(report: Report, folder: Path, num_gpus: int) -> None:
    """As replicas build it; new weights come from shared memory, as for a replica that starts late."""
    experiment = make_experiment(save_policy(folder / "policy", 0), 0.4 if num_gpus else 0.0)
    tolerance = TOLERANCE[experiment.model.dtype]
    engine = _Engine(experiment)
    before = engine.worst(engine.ask(_SHORT), version=0)
    require(before < tolerance, f"log-probs miss those of transformers by {before:.3g} nats")
    started = time.monotonic()
    answers = engine.ask(_LONG)
    speed = sum(len(answer.token_ids) for answer in answers) / (time.monotonic() - started)
    modes = engine.modes()
    if num_gpus:
        require(modes["CUDA graphs"] != "NONE", "vLLM's engine captured no CUDA graphs")
        report.passed("CUDA graphs", mode=modes["CUDA graphs"], mismatch=before, tokens_per_s=speed)
        require(modes["asynchronous scheduling"] == "True", "vLLM did not schedule asynchronously")
        report.passed("asynchronous scheduling", mismatch=before, tokens_per_s=speed)
    else:
        report.not_tried("CUDA graphs", "needs 1 GPU; there are 0")
        report.not_tried("asynchronous scheduling", "needs 1 GPU; vLLM turns it off on processors")
    seconds = engine.update_in_flight(folder.name, tolerance)
    after = engine.worst(engine.ask(_SHORT), version=1)
    old = engine.worst(engine.ask(_SHORT), version=0)
    require(after < tolerance, f"after the update log-probs miss those of transformers by {after:.3g} nats")
    require(old > CONTRAST * tolerance, f"after the update the old weights still fit: {old:.3g} nats")
    report.passed("in-flight update", mismatch=after, of_old_weights=old, paused_s=seconds)


class _Engine:
    """The engine's thread, and requests that are waited for."""

    _llm: LLMEngine

    def __init__(self, experiment: ExperimentConfig) -> None:
        self._broken: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def build() -> LLMEngine:
            self._llm = build_engine(experiment, experiment.model.path, seed=0)
            return self._llm

        self._thread = EngineThread(build, self._broken.put)
        self._thread.wait_until_built(_TIMEOUT_S)

    def modes(self) -> dict[str, str]:
        config = self._llm.vllm_config
        return {
            "CUDA graphs": config.compilation_config.cudagraph_mode.name,
            "asynchronous scheduling": str(bool(config.scheduler_config.async_scheduling)),
        }

    def ask(self, num_tokens: int) -> list[Answer]:
        return self._wait(*self._submit(num_tokens))

    def worst(self, answers: list[Answer], version: int) -> float:
        policy = make_policy(version)
        return max(mismatch(policy, _prompt(one.key), one.token_ids, one.logprobs) for one in answers)

    def update_in_flight(self, application: str, tolerance: float) -> float:
        """Loads version 1 under running requests, each part of which must fit the weights that it names."""
        claim_folder(application)
        try:
            sender = SharedMemorySender(application)
            dtype = self._llm.vllm_config.model_config.dtype
            tensors = [(name, weight.to(dtype)) for name, weight in named_weights(make_policy(1)).items()]
            update = sender.prepare(Weights.of(tensors), 1, {})
            submitted = self._submit(_LONG)
            deadline = time.monotonic() + _TIMEOUT_S
            while self._thread.statistics()["running_requests"] == 0:
                require(time.monotonic() < deadline, "no request began to run")
                time.sleep(0.001)
            loaded = self._thread.load_weights(update, 1).result(_TIMEOUT_S)
            answers = self._wait(*submitted)
        finally:
            release_folder(application)
        in_two = [answer for answer in answers if len(answer.spans) == 2]
        require(bool(in_two), "every request had ended before the update")
        policies = [make_policy(0), make_policy(1)]
        for answer in in_two:
            for start, end, version in answer.spans:
                prompt = _prompt(answer.key) + answer.token_ids[:start]
                missed = mismatch(
                    policies[version], prompt, answer.token_ids[start:end], answer.logprobs[start:end]
                )
                require(missed < tolerance, f"tokens of weights {version} miss them by {missed:.3g} nats")
        return loaded.seconds_paused

    def _submit(self, num_tokens: int) -> tuple[list[Request], queue.SimpleQueue[list[Answer]]]:
        answers: queue.SimpleQueue[list[Answer]] = queue.SimpleQueue()
        sampling = Sampling(temperature=1.0, max_tokens=num_tokens, stop=(), seed=None)
        requests = [make_request(key, _prompt(key), sampling) for key in range(_NUM_REQUESTS)]
        self._thread.submit(requests, answers.put)
        return requests, answers

    def _wait(self, requests: list[Request], answers: queue.SimpleQueue[list[Answer]]) -> list[Answer]:
        found: list[Answer] = []
        while len(found) < len(requests):
            if not self._broken.empty():
                raise RuntimeError("the engine broke") from self._broken.get()
            found += answers.get(timeout=_TIMEOUT_S)
        for answer in found:
            require(answer.refusal is None, f"a request was refused: {answer.refusal}")
        return found


def _prompt(key: int) -> list[int]:
    return [100 + key, *range(300, 340)]

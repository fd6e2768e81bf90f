"""vLLM alone in a process: recorded prompts in, as many tokens out as were recorded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from serl.config import ExperimentConfig
from serl.serving.engine_options import build_engine, replica_environment
from serl.types import Trajectory

# Never sampled as text: no response ends before it is as long as the recorded one.
_IMPOSSIBLE_STOP = "\N{NULL}\N{NULL}"

RecordedRequest = tuple[list[int], int]


@dataclass(slots=True)
class Replayed:
    """What the engine did in the ``seconds`` of its steady state, ``processor_seconds`` of its process."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    response_tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    num_requests: int = 0

    @property
    def response_tokens_per_s(self) -> float:
        return self.response_tokens / self.seconds

    @property
    def processor_ms_per_request(self) -> float:
        return 1000.0 * self.processor_seconds / self.num_requests

    @property
    def cached_share(self) -> float:
        return self.cached_prompt_tokens / max(self.prompt_tokens, 1)


@dataclass(slots=True)
class _Progress:
    """Sessions of requests that follow one another; ``owner`` has the session of each running request."""

    waiting: deque[deque[RecordedRequest]]
    owner: dict[str, deque[RecordedRequest]] = field(default_factory=dict)
    num_asked: int = 0
    num_ended: int = 0


class BareEngine:
    """Runs as a Ray actor: `start_bare_engine`. The engine has the options of a replica's."""

    def __init__(self, experiment: ExperimentConfig, model_dir: str) -> None:
        self._rollout = experiment.rollout
        self._engine: Any = build_engine(experiment, model_dir, experiment.seed)

    def replay(
        self,
        sessions: Sequence[Sequence[RecordedRequest]],
        num_in_flight: int,
        as_text: bool,
        timeout_s: float,
    ) -> Replayed:
        """Asks ``(prompt ids, response length)`` requests, those of a session one after another.

        ``num_in_flight`` sessions run at a time. Measured from when so many have ended until none waits any
        more. ``as_text``: vLLM also writes tokens as text and looks for stop strings in it, as env runners
        let it. Nothing cached is left of an earlier replay.
        """
        assert self._engine.reset_prefix_cache()
        progress = _Progress(deque(deque(session) for session in sessions if session))
        measured = Replayed()
        started: tuple[float, float] | None = None
        deadline = time.perf_counter() + timeout_s
        for _ in range(min(num_in_flight, len(progress.waiting))):
            self._ask(progress.waiting.popleft(), progress, as_text)
        while progress.owner:
            for output in self._engine.step():
                if output.finished:
                    self._ended(output, progress, measured if started and progress.waiting else None, as_text)
            now = time.perf_counter()
            if now > deadline:
                raise TimeoutError(f"{len(progress.owner)} requests not answered within {timeout_s:g} s")
            if started is None and progress.num_ended >= num_in_flight:
                started = now, time.process_time()
            if started and progress.waiting:
                measured.seconds = now - started[0]
                measured.processor_seconds = time.process_time() - started[1]
        return measured

    def _ask(self, session: deque[RecordedRequest], progress: _Progress, as_text: bool) -> None:
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        prompt_ids, num_tokens = session.popleft()
        name = str(progress.num_asked)
        progress.num_asked += 1
        progress.owner[name] = session
        sampling = SamplingParams(
            temperature=self._rollout.temperature,
            max_tokens=num_tokens,
            ignore_eos=True,
            stop=[_IMPOSSIBLE_STOP] if as_text else None,
            detokenize=as_text,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(name, tokens_input(prompt_ids), sampling)

    def _ended(self, output: Any, progress: _Progress, measured: Replayed | None, as_text: bool) -> None:
        session = progress.owner.pop(output.request_id)
        if measured is not None:
            measured.num_requests += 1
            measured.response_tokens += len(output.outputs[0].token_ids)
            measured.prompt_tokens += len(output.prompt_token_ids)
            measured.cached_prompt_tokens += output.num_cached_tokens or 0
        if session:
            self._ask(session, progress, as_text)
            return
        progress.num_ended += 1
        if progress.waiting:
            self._ask(progress.waiting.popleft(), progress, as_text)


def recorded_sessions(trajectories: Sequence[Trajectory]) -> list[list[RecordedRequest]]:
    """The requests of each trajectory, in the order of the trajectories."""
    return [
        [(step.prompt_ids, len(step.response_ids)) for step in trajectory.steps]
        for trajectory in trajectories
    ]


def start_bare_engine(experiment: ExperimentConfig, model_dir: Path) -> Any:
    """A `BareEngine` in a process of its own, with a replica's environment; it ends with its handle."""
    environment = {"env_vars": replica_environment(experiment.serving)}
    actor = ray.remote(BareEngine).options(num_cpus=0, runtime_env=environment)
    return actor.remote(experiment, str(model_dir))

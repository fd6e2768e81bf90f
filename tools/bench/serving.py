"""The policy deployment: env runners on it against the bare vLLM engine."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from serl.config import ExperimentConfig
from serl.serving.engine_options import build_engine, replica_environment
from serl.types import Trajectory
from tools.bench.figures import Figures
from tools.bench.play import (
    CLUSTER,
    DRIVER,
    ENV_RUNNER,
    PLAY_TIMEOUT_S,
    REPLICA,
    Played,
    local_cluster,
    player_on_deployment,
)

# Episodes for every one that runs at the same time: as many ramp up unmeasured.
_MEASURED_ROUNDS = 3
# Never sampled as text: no response ends before it is as long as the recorded one.
_IMPOSSIBLE_STOP = "\N{NULL}\N{NULL}"

RecordedRequest = tuple[list[int], int]


def rollout(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    played: list[Played] = []
    with_text: list[Replayed] = []
    ids_only: list[Replayed] = []
    with local_cluster() as run_dir:
        bare = _start_bare_engine(experiment, model_dir)
        with player_on_deployment(experiment, model_dir, run_dir) as (player, _):
            figures.note(
                f"{experiment.model.path}: {player.capacity} episodes at a time, {options.repetitions} "
                f"repetitions of {_MEASURED_ROUNDS * player.capacity} measured episodes"
            )
            for _ in range(options.repetitions):
                ramp = player.play_steadily(player.capacity)
                steady = player.play_steadily(_MEASURED_ROUNDS * player.capacity)
                player.finish()
                played.append(steady)
                sessions = _recorded([*ramp.trajectories, *steady.trajectories])
                for as_text, replayed in ((True, with_text), (False, ids_only)):
                    answer = bare.replay.remote(sessions, player.capacity, as_text, PLAY_TIMEOUT_S)
                    replayed.append(ray.get(answer, timeout=PLAY_TIMEOUT_S + 60.0))
    _report_rollout(played, with_text, ids_only, figures)


def _report_rollout(
    played: Sequence[Played],
    with_text: Sequence[Replayed],
    ids_only: Sequence[Replayed],
    figures: Figures,
) -> None:
    runners, replica = "env runners", f"processor time, {REPLICA}"
    bare, bare_ids = "bare engine", "bare engine, ids alone"
    figures.add(runners, (one.per_s("response_tokens") for one in played), "tokens/s")
    figures.add("env steps", (one.per_s("env_steps") for one in played), "steps/s")
    figures.add(bare, (one.response_tokens / one.seconds for one in with_text), "tokens/s")
    figures.add(bare_ids, (one.response_tokens / one.seconds for one in ids_only), "tokens/s")
    for kind in (REPLICA, ENV_RUNNER, DRIVER, CLUSTER):
        figures.add(f"processor time, {kind}", (one.processor_ms_per_step(kind) for one in played), "ms/step")
    bare_ms = (1000.0 * one.processor_seconds / one.num_requests for one in with_text)
    figures.add("processor time, bare engine", bare_ms, "ms/request")
    cached = (one.cached_prompt_tokens / one.prompt_tokens for one in with_text)
    figures.add("prompt tokens cached, env runners", (one.cached_share for one in played), "of all")
    figures.add("prompt tokens cached, bare engine", cached, "of all")
    figures.add_ratio(runners, bare, at_least=0.95)
    figures.add_ratio(runners, bare_ids, at_least=0.85)
    figures.add_ratio("processor time, bare engine", replica)


def _recorded(trajectories: Sequence[Trajectory]) -> list[deque[RecordedRequest]]:
    """The requests of each trajectory: prompt ids and the length of the response."""
    played = [trajectory.steps for trajectory in trajectories if trajectory.steps]
    return [deque((step.prompt_ids, len(step.response_ids)) for step in steps) for steps in played]


def _start_bare_engine(experiment: ExperimentConfig, model_dir: Path) -> Any:
    """In a process of its own, with a replica's environment; it ends with its handle."""
    environment = {"env_vars": replica_environment(experiment.serving)}
    num_gpus = experiment.serving.num_gpus_per_replica
    actor = ray.remote(_BareEngine).options(num_cpus=0, num_gpus=num_gpus, runtime_env=environment)
    engine: Any = actor.remote(experiment, str(model_dir))
    if num_gpus:
        # As it starts, vLLM measures what is free on its GPU, which a replica's start beside it would change.
        ray.get(engine.__ray_ready__.remote(), timeout=experiment.serving.start_timeout_s)
    return engine


@dataclass(slots=True)
class Replayed:
    """What the bare engine did in the ``seconds`` of its steady state; ``processor_seconds`` are its own."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    response_tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    num_requests: int = 0

    def add(self, output: Any) -> None:
        self.num_requests += 1
        self.response_tokens += len(output.outputs[0].token_ids)
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_prompt_tokens += output.num_cached_tokens or 0


class _BareEngine:
    """vLLM alone, with a replica's options: recorded prompts in, as many tokens out as were recorded."""

    def __init__(self, experiment: ExperimentConfig, model_dir: str) -> None:
        self._temperature = experiment.rollout.temperature
        self._engine: Any = build_engine(experiment, model_dir, experiment.seed)

    def replay(
        self,
        sessions: Sequence[deque[RecordedRequest]],
        num_in_flight: int,
        as_text: bool,
        timeout_s: float,
    ) -> Replayed:
        """Asks the requests of ``num_in_flight`` sessions at a time, those of a session one after another.

        Measured from when so many sessions have ended until none waits any more. ``as_text``: vLLM also
        writes tokens as text and looks for stop strings in it, as env runners let it. Nothing cached is left
        of an earlier replay.
        """
        assert self._engine.reset_prefix_cache()
        waiting = deque(sessions)
        running: dict[str, deque[RecordedRequest]] = {}
        num_asked = num_ended = 0
        replayed = Replayed()
        started = started_processor = None
        deadline = time.perf_counter() + timeout_s

        def ask(session: deque[RecordedRequest]) -> None:
            nonlocal num_asked
            running[str(num_asked)] = session
            self._ask(str(num_asked), *session.popleft(), as_text)
            num_asked += 1

        while waiting and len(running) < num_in_flight:
            ask(waiting.popleft())
        while running:
            for output in self._engine.step():
                if not output.finished:
                    continue
                if started is not None and waiting:
                    replayed.add(output)
                session = running.pop(output.request_id)
                num_ended += not session
                if session or waiting:
                    ask(session or waiting.popleft())
            now, processor = time.perf_counter(), time.process_time()
            if now > deadline:
                raise TimeoutError(f"{len(running)} requests not answered within {timeout_s:g} s")
            if started is None and num_ended >= num_in_flight:
                started, started_processor = now, processor
            if started is not None and started_processor is not None and waiting:
                replayed.seconds = now - started
                replayed.processor_seconds = processor - started_processor
        return replayed

    def _ask(self, name: str, prompt_ids: list[int], num_tokens: int, as_text: bool) -> None:
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling = SamplingParams(
            temperature=self._temperature,
            max_tokens=num_tokens,
            ignore_eos=True,
            stop=[_IMPOSSIBLE_STOP] if as_text else None,
            detokenize=as_text,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(name, tokens_input(prompt_ids), sampling)

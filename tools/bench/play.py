"""A policy deployment with env runners that play on it, as the algorithm has them, without learners."""

from __future__ import annotations

import functools
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from envs.registry import make_provider
from serl.algorithm_config import SERLConfig
from serl.buffer.task_sampler import TaskSampler
from serl.config import ExperimentConfig
from serl.rollout.runner_pool import EnvRunnerPool, PoolReport
from serl.serving.client import PolicyClient
from serl.serving.names import ServingNames
from serl.serving.start import start_serving, stop_serving, wait_until_ready
from serl.types import Trajectory, TrajectoryGroup
from tools.bench.processes import processor_seconds

PLAY_TIMEOUT_S = 900.0
_POLL_S = 0.05


@dataclass(slots=True)
class Played:
    """What env runners did in ``seconds`` of a steady state.

    ``trajectories`` are those that ended then, ``processor_seconds`` are by kind of process.
    """

    seconds: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)
    processor_seconds: Counter[str] = field(default_factory=Counter)
    trajectories: list[Trajectory] = field(default_factory=list)

    @property
    def response_tokens_per_s(self) -> float:
        return self.counters["response_tokens"] / self.seconds

    @property
    def env_steps_per_s(self) -> float:
        return self.counters["env_steps"] / self.seconds

    def processor_ms_per_step(self, *kinds: str) -> float:
        """Processor time of processes of these kinds for each step of an episode."""
        return 1000.0 * sum(self.processor_seconds[kind] for kind in kinds) / self.counters["env_steps"]

    @property
    def cached_share(self) -> float:
        """Which share of the prompt tokens the prefix cache held."""
        return self.counters["cached_prompt_tokens"] / max(self.counters["prompt_tokens"], 1)


@contextmanager
def deployed(experiment: ExperimentConfig, model_dir: Path, run_dir: Path) -> Iterator[ServingNames]:
    """The policy deployment of ``experiment``, answering. Ray must be initialised."""
    names = start_serving(experiment, str(model_dir), str(run_dir), instance=uuid.uuid4().hex[:8])
    try:
        wait_until_ready(names, experiment.serving.start_timeout_s)
        yield names
    finally:
        stop_serving(names)


class Player:
    """The env runners of ``experiment`` on the deployment ``names``; `stop` ends them."""

    def __init__(
        self, experiment: ExperimentConfig, model_dir: Path, run_dir: Path, names: ServingNames
    ) -> None:
        config = SERLConfig.from_experiment(experiment, str(model_dir), str(run_dir))
        config.make_policy = functools.partial(PolicyClient, names)
        self._capacity = experiment.rollout.num_env_runners * experiment.rollout.max_concurrent_episodes
        self._runners = EnvRunnerGroup(config=config, local_env_runner=False)
        self._pool = EnvRunnerPool(self._runners, experiment.rollout.max_concurrent_episodes)
        provider = make_provider(experiment.env.name, experiment.env.args)
        tasks = provider.task_set(experiment.env.train_split)
        self._sampler = TaskSampler(tasks, experiment.training.group_size, experiment.seed)

    @property
    def capacity(self) -> int:
        """How many episodes run at the same time."""
        return self._capacity

    def play_steadily(self, num_episodes: int) -> Played:
        """Keeps all runners full until ``num_episodes`` have ended since the call.

        The first call ramps up; runners go on playing afterwards until `drain`. Raises RuntimeError if an
        episode fails, TimeoutError.
        """
        self.keep_full(timeout_s=0.0)
        played = Played()
        before = processor_seconds()
        started = time.perf_counter()
        while len(played.trajectories) < num_episodes:
            report = self.keep_full(_POLL_S)
            played.trajectories += report.trajectories
            played.counters.update(report.counters)
            played.seconds = time.perf_counter() - started
            _check_time(played.seconds, f"{num_episodes} episodes, {len(played.trajectories)} have ended")
        played.processor_seconds = processor_seconds()
        played.processor_seconds.subtract(before)
        return played

    def play_groups(self, num_groups: int) -> list[TrajectoryGroup]:
        """Plays ``num_groups`` whole groups."""
        groups = [self._sampler.next_group() for _ in range(num_groups)]
        for requests in groups:
            self._pool.submit(requests)
        ended = {(t.group_id, t.rollout_index): t for t in self.drain()}
        return [
            TrajectoryGroup(
                group[0].group_id, group[0].task, [ended[a.group_id, a.rollout_index] for a in group]
            )
            for group in groups
        ]

    def keep_full(self, timeout_s: float) -> PoolReport:
        """Queues whole groups so that no runner waits for a request; what ended within ``timeout_s``."""
        while self._pool.num_queued < self._capacity:
            self._pool.submit(self._sampler.next_group())
        return self._poll(timeout_s)

    def drain(self) -> list[Trajectory]:
        """Lets every episode that runs or waits come to its end."""
        ended: list[Trajectory] = []
        started = time.perf_counter()
        while self._pool.num_running or self._pool.num_queued:
            ended += self._poll(_POLL_S).trajectories
            _check_time(time.perf_counter() - started, f"{self._pool.num_running} episodes")
        return ended

    def finish(self) -> None:
        """Lets what runs come to its end, and forgets what waits."""
        self._pool.withdraw_queued()
        self.drain()

    def stop(self) -> None:
        self._runners.stop()

    def _poll(self, timeout_s: float) -> PoolReport:
        report = self._pool.poll(timeout_s)
        if report.failures:
            failure = report.failures[0]
            raise RuntimeError(f"an episode failed: {failure.reason}: {failure.message}")
        return report


@contextmanager
def player_on_deployment(
    experiment: ExperimentConfig, model_dir: Path, run_dir: Path
) -> Iterator[tuple[Player, ServingNames]]:
    """Both, ready to play; both end with the block."""
    with deployed(experiment, model_dir, run_dir) as names:
        player = Player(experiment, model_dir, run_dir, names)
        try:
            yield player, names
        finally:
            player.stop()


def _check_time(seconds: float, waited_for: str) -> None:
    if seconds > PLAY_TIMEOUT_S:
        raise TimeoutError(f"waited {PLAY_TIMEOUT_S:g} s for {waited_for}")

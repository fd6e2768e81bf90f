"""A Ray cluster, and a policy deployment with env runners that play on it, as the algorithm has them."""

from __future__ import annotations

import functools
import logging
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from envs.registry import make_provider
from serl.algorithm import SERLConfig
from serl.buffer.task_sampler import TaskSampler
from serl.config import ExperimentConfig
from serl.gateway.client import GatewayClient
from serl.gateway.start import GatewayNames, start_gateway, wait_until_gateway_ready
from serl.rollout.episode import Policy
from serl.rollout.runner_pool import EnvRunnerPool, PoolReport
from serl.run.closed_cluster import start_closed_cluster
from serl.run.driver_log import output_to_file
from serl.serving.client import PolicyClient
from serl.serving.names import ServingNames
from serl.serving.start import start_serving, stop_serving, wait_until_ready
from serl.types import Trajectory, TrajectoryGroup

PLAY_TIMEOUT_S = 900.0
_POLL_S = 0.05

DRIVER, REPLICA, ENV_RUNNER, CLUSTER = "driver", "replica", "env runner", "cluster"
GATEWAY, PROXY = "gateway", "HTTP proxy"
# The titles of actors' processes.
_ACTORS = {
    r"ray::ServeReplica:.*:gateway": GATEWAY,
    r"ray::ServeReplica": REPLICA,
    r"ray::SERLEnvRunner": ENV_RUNNER,
    r"ray::ProxyActor": PROXY,
}


def with_settings(experiment: ExperimentConfig, **sections: dict[str, Any]) -> ExperimentConfig:
    """``experiment`` with some keys of its sections changed; nothing is validated."""
    return experiment.model_copy(
        update={
            name: getattr(experiment, name).model_copy(update=changed) for name, changed in sections.items()
        }
    )


@contextmanager
def local_cluster() -> Iterator[Path]:
    """Starts Ray on this machine and stops it afterwards; yields a folder for logs.

    Standard error goes there too, since what Ray's libraries write would hide the figures. The folder stays
    if the block raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="serl-bench-"))
    try:
        with output_to_file(folder / "driver.log"):
            try:
                start_closed_cluster(include_dashboard=False, logging_level=logging.ERROR)
                yield folder
            finally:
                if ray.is_initialized():
                    serve.shutdown()
                ray.shutdown()
    except BaseException:
        print(f"what led to this is in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Played:
    """What env runners did in ``seconds`` of a steady state.

    ``trajectories`` are those that ended then, ``processor_seconds`` are by kind of process.
    """

    seconds: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)
    processor_seconds: Counter[str] = field(default_factory=Counter)
    trajectories: list[Trajectory] = field(default_factory=list)

    def per_s(self, counter: str) -> float:
        return self.counters[counter] / self.seconds

    def processor_ms_per_step(self, kind: str) -> float:
        return 1000.0 * self.processor_seconds[kind] / self.counters["env_steps"]

    @property
    def cached_share(self) -> float:
        """Which share of the prompt tokens the prefix cache held."""
        return self.counters["cached_prompt_tokens"] / max(self.counters["prompt_tokens"], 1)


class Player:
    """The env runners of ``experiment``, each with a policy of ``make_policy``; `stop` ends them.

    ``gateway``: through which agents ask, where the experiment plays one.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        model_dir: Path,
        run_dir: Path,
        make_policy: Callable[[], Policy],
        gateway: GatewayNames | None = None,
    ) -> None:
        config = SERLConfig.from_experiment(experiment, str(model_dir), str(run_dir))
        config.make_policy = make_policy
        config.make_gateway = gateway and functools.partial(GatewayClient, gateway)
        self.capacity = experiment.rollout.fewest_env_runners * experiment.rollout.max_concurrent_episodes
        self._runners = EnvRunnerGroup(config=config, local_env_runner=False)
        self._pool = EnvRunnerPool(self._runners, experiment.rollout.max_concurrent_episodes)
        provider = make_provider(experiment.env.name, experiment.env.args)
        tasks = provider.task_set(experiment.env.train_split)
        self._sampler = TaskSampler(tasks, experiment.training.group_size, experiment.seed)

    def play_steadily(self, num_episodes: int) -> Played:
        """Keeps all runners full until ``num_episodes`` have ended since the call.

        The first call ramps up; runners go on playing afterwards until `finish`. Raises RuntimeError if an
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
            _check_time(started, f"{num_episodes} episodes, {len(played.trajectories)} have ended")
        played.processor_seconds = processor_seconds()
        played.processor_seconds.subtract(before)
        return played

    def play_groups(self, num_groups: int) -> list[TrajectoryGroup]:
        """Plays ``num_groups`` whole groups."""
        groups = [self._sampler.next_group() for _ in range(num_groups)]
        for requests in groups:
            self._pool.submit(requests)
        ended = {(t.group_id, t.rollout_index): t for t in self._drain()}
        return [
            TrajectoryGroup(
                group[0].group_id, group[0].task, [ended[r.group_id, r.rollout_index] for r in group]
            )
            for group in groups
        ]

    def keep_full(self, timeout_s: float) -> PoolReport:
        """Queues whole groups so that no runner waits for a request; what ended within ``timeout_s``."""
        while self._pool.num_queued < self.capacity:
            self._pool.submit(self._sampler.next_group())
        return self._poll(timeout_s)

    def finish(self) -> None:
        """Lets what runs come to its end, and forgets what waits."""
        self._pool.withdraw_queued()
        self._drain()

    def stop(self) -> None:
        self._runners.stop()

    def _drain(self) -> list[Trajectory]:
        ended: list[Trajectory] = []
        started = time.perf_counter()
        while self._pool.num_running or self._pool.num_queued:
            ended += self._poll(_POLL_S).trajectories
            _check_time(started, f"{self._pool.num_running} episodes")
        return ended

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
    """A player and its deployment, ready to play; both end with the block. Ray must be initialised."""
    with players_on_deployment([experiment], model_dir, run_dir) as ((player,), names):
        yield player, names


@contextmanager
def players_on_deployment(
    experiments: Sequence[ExperimentConfig], model_dir: Path, run_dir: Path
) -> Iterator[tuple[list[Player], ServingNames]]:
    """A player of each experiment on one deployment, which is that of the first."""
    first = experiments[0]
    names = start_serving(first, str(model_dir), str(run_dir))
    try:
        gateway = start_gateway(first, str(model_dir), str(run_dir), names)
        wait_until_ready(names, first.serving.start_timeout_s)
        wait_until_gateway_ready(gateway, first.serving.start_timeout_s)
        with ExitStack() as stack:
            players = []
            for experiment in experiments:
                make_policy = functools.partial(PolicyClient, names)
                players.append(Player(experiment, model_dir, run_dir, make_policy, gateway))
                stack.callback(players[-1].stop)
            yield players, names
    finally:
        stop_serving(names)


def processor_seconds() -> Counter[str]:
    """Processor seconds of this process and of the Ray cluster it started, so far, by kind of process.

    They stay comparable when other work keeps the cores busy. ``cluster`` is everything that has no kind of
    its own; processes that have ended, as those of agents have, are missing.
    """
    seconds: Counter[str] = Counter()
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            title = "".join(process.cmdline()[:1])
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        kinds = (kind for start, kind in _ACTORS.items() if re.match(start, title))
        kind = DRIVER if process is this else next(kinds, CLUSTER)
        seconds[kind] += times.user + times.system  # pyright: ignore[reportArgumentType]
    return seconds


def _check_time(started: float, waited_for: str) -> None:
    if time.perf_counter() - started > PLAY_TIMEOUT_S:
        raise TimeoutError(f"waited {PLAY_TIMEOUT_S:g} s for {waited_for}")

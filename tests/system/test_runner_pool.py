"""The pool of env runners on real actors, with a scripted policy in each."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from rollout_helpers import rollout_request
from runner_helpers import runner_config, scripted_policy

from serl.private.ray_core import ends_within
from serl.private.rllib import worker_manager
from serl.rollout.runner_pool import EnvRunnerError, EnvRunnerPool, PoolReport
from serl.types import RolloutRequest

HELPERS = str(Path(__file__).resolve().parents[1] / "helpers")
NUM_RUNNERS = 2


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Its workers find the helpers of the tests."""
    path = os.pathsep.join(filter(None, [HELPERS, os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {"PYTHONPATH": path}}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.fixture
def group(ray_cluster: None, tmp_path: Path) -> Iterator[EnvRunnerGroup]:
    config = runner_config(tmp_path)
    config.make_policy = functools.partial(scripted_policy, str(tmp_path))
    config.env_runners(num_env_runners=NUM_RUNNERS, num_cpus_per_env_runner=0)
    config.fault_tolerance(
        restart_failed_env_runners=True,
        env_runner_health_probe_timeout_s=0.2,
        delay_between_env_runner_restarts_s=0.0,
    )
    group = EnvRunnerGroup(config=config, local_env_runner=False)
    yield group
    group.stop()


def poll_until(pool: EnvRunnerPool, num_ended: int, timeout_s: float = 120.0) -> PoolReport:
    """Everything that comes until so many requests have ended, one way or the other."""
    total = PoolReport()
    deadline = time.monotonic() + timeout_s
    while len(total.trajectories) + len(total.failures) < num_ended:
        assert time.monotonic() < deadline, f"{total.counters}: not all of {num_ended} requests have ended"
        report = pool.poll(0.2)
        total.trajectories += report.trajectories
        total.failures += report.failures
        total.counters.update(report.counters)
    return total


def wait_until(pool: EnvRunnerPool, condition: Callable[[], bool], what: str) -> Counter[str]:
    """Polls; returns what was counted meanwhile."""
    counters: Counter[str] = Counter()
    deadline = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}; {pool.describe()}"
        counters += pool.poll(0.05).counters
    return counters


def corridors(*rollout_indices: int) -> list[RolloutRequest]:
    return [rollout_request("corridor 2", rollout_index=index) for index in rollout_indices]


def test_more_requests_than_places_are_all_played_by_all_runners(group: EnvRunnerGroup) -> None:
    pool = EnvRunnerPool(group, max_concurrent_episodes=2, exchange_wait_s=0.2)
    pool.submit(corridors(0, 1, 2, 3, 4, 5))
    pool.poll(0.0)
    assert (pool.num_running, pool.num_queued) == (4, 2)
    report = poll_until(pool, 6)
    assert sorted(t.rollout_index for t in report.trajectories) == [0, 1, 2, 3, 4, 5]
    assert report.counters["env_steps"] == 12
    assert (pool.num_running, pool.num_queued) == (0, 0)


def test_what_environments_start_hears_a_signal_that_ray_blocks(group: EnvRunnerGroup) -> None:
    def interrupt_a_child(runner: object) -> int:
        child = subprocess.Popen(["sleep", "60"])
        child.send_signal(signal.SIGINT)
        return child.wait(30)

    assert group.foreach_env_runner(interrupt_a_child, local_env_runner=False) == [-2, -2]


def test_the_episodes_of_a_runner_that_dies_come_back_as_failed_and_it_is_replaced(
    group: EnvRunnerGroup,
) -> None:
    pool = EnvRunnerPool(group, max_concurrent_episodes=1, exchange_wait_s=0.2)
    pool.submit([rollout_request("corridor 2", rollout_index=9), *corridors(1)])
    poll_until(pool, 1)
    victim = next(runner for runner, episodes in pool._running.items() if episodes)
    ray.kill(worker_manager(group).actors()[victim], no_restart=False)
    report = poll_until(pool, 1)
    assert [(f.request.rollout_index, f.reason) for f in report.failures] == [(9, "env_runner_died")]
    assert report.counters["env_runners_died"] == 1
    assert report.failures[0].message.startswith(f"env runner {victim} died with 1 episodes (death 1): ")
    pool.submit(corridors(2, 3, 4))
    assert len(poll_until(pool, 3).trajectories) == 3


def test_a_runner_that_is_unfit_reports_is_replaced_and_its_episodes_come_back(
    ray_cluster: None, tmp_path: Path
) -> None:
    config = runner_config(tmp_path)
    config.experiment = config.experiment.model_copy(
        update={
            "env": config.experiment.env.model_copy(update={"call_timeout_s": 0.5}),
            "rollout": config.experiment.rollout.model_copy(update={"max_concurrent_episodes": 2}),
        }
    )
    config.make_policy = functools.partial(scripted_policy, str(tmp_path))
    config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0)
    config.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0.0)
    group = EnvRunnerGroup(config=config, local_env_runner=False)
    pool = EnvRunnerPool(group, max_concurrent_episodes=3, exchange_wait_s=0.2)  # one waits in the runner
    try:
        hanging = [rollout_request("blocking 1", rollout_index=index) for index in (0, 1)]
        pool.submit([*hanging, rollout_request("corridor 2", rollout_index=9)])
        failures = poll_until(pool, 3).failures
        assert [failure.reason for failure in failures] == ["environment_timeout"] * 2 + ["env_runner_died"]
        assert "died with 1 episodes (death 1): 2 calls of its environments hang" in failures[2].message
        pool.submit(corridors(2, 3, 4))
        report = poll_until(pool, 3)
        assert len(report.trajectories) == 3 and report.counters["env_runners_died"] == 0
    finally:
        group.stop()


def test_a_runner_without_a_place_keeps_nobody_waiting_and_one_not_wanted_ends_after_its_episodes(
    ray_cluster: None, tmp_path: Path
) -> None:
    config = runner_config(tmp_path)
    config.make_policy = functools.partial(scripted_policy, str(tmp_path))
    config.env_runners(num_env_runners=1, num_cpus_per_env_runner=2)  # of the cluster's four
    group = EnvRunnerGroup(config=config, local_env_runner=False)
    pool = EnvRunnerPool(group, max_concurrent_episodes=4, exchange_wait_s=0.2)
    ready: list[int] = []
    ended: list[int] = []
    pool.on_ready, pool.on_end = lambda index, runner: ready.append(index), ended.append
    try:
        pool.resize(3)
        pool.submit(corridors(0, 1, 2, 3, 4))
        counters = poll_until(pool, 5).counters
        wait_until(pool, lambda: bool(ready), "the runner for which there is room")
        assert pool.metrics()["pool/missing_env_runners"] == 1
        assert pool.num_places == 8

        pool.resize(2)
        counters += wait_until(pool, lambda: bool(ended), "the runner that has no place")
        assert ended == [5 - ready[0]]  # of 2 and 3
        pool.max_episodes = 2
        slow = corridors(7)
        pool.submit([*slow, *[replace(request, group_id="another") for request in slow], *corridors(0)])
        counters += pool.poll(0.0).counters
        assert (pool.num_running, pool.num_queued) == (2, 1)

        pool.max_episodes = None
        pool.resize(1)
        assert (pool.num_wanted, pool.num_running) == (1, 2)
        (leaving,) = worker_manager(group).actors().keys() - pool.playing().keys()
        report = poll_until(pool, 3)
        assert sorted(t.rollout_index for t in report.trajectories) == [0, 7, 7]
        counters += report.counters
        counters += wait_until(pool, lambda: len(ended) == 2, "the runner that is not wanted")
        assert ended[1] == leaving and list(pool.playing()) == worker_manager(group).actor_ids()
        assert (counters["env_runners_added"], counters["env_runners_removed"]) == (2, 2)
        assert counters["env_runners_died"] == 0
        pool.resize(4)
    finally:
        pool.close()
        with ends_within(60.0, "the end of runners without a place was waited for"):
            group.stop()


def test_an_error_that_is_no_failure_of_an_episode_ends_the_run_with_its_traceback(
    group: EnvRunnerGroup,
) -> None:
    pool = EnvRunnerPool(group, max_concurrent_episodes=8, exchange_wait_s=0.2)
    pool.submit(corridors(8))
    with pytest.raises(
        EnvRunnerError, match=r"(?s)env runner \d failed: ZeroDivisionError: a bug\nTraceback "
    ):
        poll_until(pool, 1)

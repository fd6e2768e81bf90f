"""The pool of env runners on real actors, with a scripted policy in each."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from rollout_helpers import rollout_request
from runner_helpers import runner_config, scripted_policy

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


def test_an_error_that_is_no_failure_of_an_episode_ends_the_run_with_its_traceback(
    group: EnvRunnerGroup,
) -> None:
    pool = EnvRunnerPool(group, max_concurrent_episodes=8, exchange_wait_s=0.2)
    pool.submit(corridors(8))
    with pytest.raises(
        EnvRunnerError, match=r"(?s)env runner \d failed: ZeroDivisionError: a bug\nTraceback "
    ):
        poll_until(pool, 1)

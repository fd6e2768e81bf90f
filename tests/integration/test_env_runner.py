from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollout_helpers import Corridor, ScriptedClient, rollout_request
from runner_helpers import RunnerConfig, runner_config, scripted_policy

from serl.config import EnvSection
from serl.rollout.env_runner import SERLEnvRunner
from serl.types import Trajectory
from tools.make_alfworld_games import main as make_games


@pytest.fixture
def config(tmp_path: Path) -> RunnerConfig:
    return runner_config(tmp_path)


@pytest.fixture
def policy(config: RunnerConfig) -> ScriptedClient:
    return scripted_policy(config.model_dir)


@pytest.fixture
def runner(config: RunnerConfig, policy: ScriptedClient) -> Iterator[SERLEnvRunner]:
    config.make_policy = lambda: policy
    runner = SERLEnvRunner(config=config, worker_index=1)
    yield runner
    runner.stop()


def finish(runner: SERLEnvRunner, num_trajectories: int) -> list[Trajectory]:
    trajectories: list[Trajectory] = []
    deadline = time.monotonic() + 60.0
    while len(trajectories) < num_trajectories:
        assert time.monotonic() < deadline
        trajectories += runner.exchange([], wait_s=1.0).trajectories
    return trajectories


def test_the_env_runner_plays_what_it_is_sent_and_reports_it(runner: SERLEnvRunner, policy: ScriptedClient):
    runner.assert_healthy()
    report = runner.exchange(
        [rollout_request(f"corridor {m + 1}", rollout_index=m) for m in range(4)], wait_s=0.0
    )
    assert (report.trajectories, report.num_unfinished) == ([], 4)
    policy.retries = 3
    first = runner.exchange([], wait_s=10.0)
    assert first.trajectories
    assert first.counters["request_retries"] == 3
    rest = finish(runner, 4 - len(first.trajectories))
    assert sorted(len(t.steps) for t in first.trajectories + rest) == [1, 2, 3, 4]
    assert runner.exchange([], wait_s=0.0).counters["request_retries"] == 0


def test_relative_paths_begin_where_the_run_was_started(
    config: RunnerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process of a runner was started by a cluster, in another folder."""
    started, elsewhere = tmp_path / "started", tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = ["--train", "2", "--heldout", "1", "--sizes", "small=1", "--seed", "3"]
    assert make_games(["--out", str(started / "games"), *arguments]) == 0
    monkeypatch.chdir(elsewhere)
    env = EnvSection(name="alfworld", args={"data": "games"})
    config.experiment = config.experiment.model_copy(update={"env": env})
    config.start_dir = str(started)
    runner = SERLEnvRunner(config=config, worker_index=1)
    assert len(runner.provider.task_set("train")) == 2
    runner.stop()


def test_evaluation_is_sampled_at_its_own_temperature(runner: SERLEnvRunner, policy: ScriptedClient):
    runner.exchange(
        [
            rollout_request("corridor 1", rollout_index=0),
            rollout_request("corridor 1", rollout_index=1, evaluation=True),
        ],
        wait_s=0.0,
    )
    finish(runner, 2)
    samplings = [sampling for _, sampling in policy.requests]
    assert [sampling.temperature for sampling in samplings] == [0.9, 0.4]
    assert {(sampling.max_tokens, sampling.stop) for sampling in samplings} == {(33, ("</action>",))}


def test_abort_reports_every_request_that_had_not_finished(runner: SERLEnvRunner):
    runner.exchange(
        [rollout_request(rollout_index=9), rollout_request("corridor 1", rollout_index=0)], wait_s=0.0
    )
    finish(runner, 1)
    report = runner.abort()
    assert [(f.request.rollout_index, f.reason) for f in report.failures] == [(9, "aborted")]
    assert report.num_unfinished == 0
    runner.exchange([rollout_request("corridor 1", rollout_index=1)], wait_s=0.0)
    assert [t.rollout_index for t in finish(runner, 1)] == [1]


def test_stop_ends_running_episodes_and_threads_and_may_be_called_twice(runner: SERLEnvRunner):
    runner.exchange([rollout_request(rollout_index=9)], wait_s=0.0)
    runner.stop()
    runner.stop()
    assert not any(thread.name == "episodes" and thread.is_alive() for thread in threading.enumerate())
    with pytest.raises(AssertionError, match="has stopped"):
        runner.assert_healthy()


def test_an_env_runner_full_of_calls_that_hang_reports_what_it_has_and_says_that_it_is_unfit(
    config: RunnerConfig, policy: ScriptedClient
):
    config.experiment = config.experiment.model_copy(
        update={
            "env": EnvSection(name="rollout_helpers:make_provider", max_steps=5, call_timeout_s=0.3),
            "rollout": config.experiment.rollout.model_copy(update={"max_concurrent_episodes": 2}),
        }
    )
    config.make_policy = lambda: policy
    runner = SERLEnvRunner(config=config, worker_index=1)
    try:
        assert runner.ping() == "pong"
        runner.exchange([rollout_request("blocking 1", rollout_index=index) for index in (0, 1)], wait_s=0.0)
        failed: list[str] = []
        deadline = time.monotonic() + 60.0
        while not (report := runner.exchange([], wait_s=0.2)).unfit:
            assert time.monotonic() < deadline
            failed += [failure.reason for failure in report.failures]
        assert failed + [failure.reason for failure in report.failures] == ["environment_timeout"] * 2
        assert report.unfit == "2 calls of its environments hang (env.call_timeout_s = 0.3 s)"
        with pytest.raises(RuntimeError, match="2 calls of its environments hang"):
            runner.ping()
    finally:
        Corridor.gate.set()
        runner.stop()
        Corridor.gate.clear()


def test_an_env_runner_whose_event_loop_is_held_says_that_it_is_unfit(
    runner: SERLEnvRunner, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr("serl.rollout.env_runner._LOOP_ANSWER_TIMEOUT_S", 0.5)
        runner._loop.call_soon_threadsafe(time.sleep, 3.0)
        report = runner.exchange([], wait_s=0.0)
    assert report.error == ""
    assert "waited 0.5 s for a report of its episodes: something holds the event loop" in report.unfit
    with pytest.raises(RuntimeError, match="something holds the event loop"):
        runner.ping()


def test_rllib_finds_the_spaces_and_an_empty_state(runner: SERLEnvRunner):
    spaces = (runner.config.observation_space, runner.config.action_space)
    names = ("__env__", "__env_single__", "default_policy")
    assert runner.get_spaces() == {name: spaces for name in names}
    assert runner.get_state() == {}
    runner.set_state({"weights_seq_no": 3})
    assert runner.ping() == "pong"


def test_an_env_runner_without_policy_deployment_says_so(config: RunnerConfig):
    runner = SERLEnvRunner(config=config, worker_index=1)
    assert "start the policy deployment first" in runner.exchange([rollout_request()], wait_s=0.0).error
    runner.stop()


def test_an_env_runner_whose_machine_lacks_the_data_says_so(config: RunnerConfig, tmp_path: Path):
    env = {"env": EnvSection(args={"data": str(tmp_path / "nowhere")})}
    config.experiment = config.experiment.model_copy(update=env)
    runner = SERLEnvRunner(config=config, worker_index=1)
    assert str(tmp_path / "nowhere") in runner.exchange([rollout_request()], wait_s=0.0).error
    runner.stop()

"""Trajectories in, batches of finished groups out: filtered, judged, with evidence, while nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from buffer_helpers import trajectory
from judge_helpers import completion, judged_experiment, running
from learner_helpers import byte_tokenizer

from envs.base import TaskSet
from serl.batch.collector import BatchCollector
from serl.batch.group import FinishedGroup
from serl.config import ExperimentConfig
from serl.rollout.failures import TooManyFailuresError
from serl.rollout.prompt import PromptEncoder
from serl.rollout.report import FailedRollout
from serl.types import RolloutRequest, Step, Task, Trajectory

TASKS = TaskSet("tasks", tuple(Task(f"task {number}") for number in range(50)), "hash")


def experiment(**sections: dict[str, Any]) -> ExperimentConfig:
    settings: dict[str, Any] = {
        "name": "test",
        "model": {"path": "embedded:tiny_alfworld"},
        "training": {"group_size": 2, "groups_per_batch": 2, "max_staleness": 1},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    return ExperimentConfig.model_validate(settings)


@contextmanager
def collector_of(config: ExperimentConfig, run_dir: Path) -> Iterator[BatchCollector]:
    collector = BatchCollector(config, TASKS, PromptEncoder(byte_tokenizer()), run_dir)
    try:
        yield collector
    finally:
        collector.close()


def answered(request: RolloutRequest, reward: float, weights_seq_no: int = 0) -> Trajectory:
    """A trajectory whose steps have an action, feedback and an observation after it."""
    played = trajectory(request, weights_seq_no, reward, num_steps=2)
    steps: list[Step] = [replace(step, feedback="Nothing happens.") for step in played.steps]
    return replace(played, steps=steps)


def play(
    collector: BatchCollector, requests: list[RolloutRequest], rewards: list[float], weights_seq_no: int = 0
) -> None:
    """The requests of groups of two: their trajectories get the two ``rewards`` in turn."""
    trajectories = [answered(r, rewards[r.rollout_index], weights_seq_no) for r in requests]
    collector.add(trajectories, weights_seq_no)


def batch_of(collector: BatchCollector, weights_seq_no: int = 0) -> list[FinishedGroup]:
    deadline = time.monotonic() + 60.0
    while (batch := collector.take_batch(weights_seq_no)) is None:
        assert time.monotonic() < deadline, collector.describe()
        time.sleep(0.01)
    return batch


def test_a_batch_has_its_evidence_when_it_is_taken(tmp_path: Path) -> None:
    with collector_of(experiment(), tmp_path) as collector:
        requests = collector.admit(0)
        assert len(requests) == (1 + 1) * 2 * 2
        play(collector, requests[:4], [10.0, 0.0])
        batch = batch_of(collector)
    assert [group.group_id for group in batch] == ["g000000", "g000001"]
    for group in batch:
        assert group.has_variance and group.rows.has_teacher_prompt.all()
        assert group.rows.advantages.tolist() == [
            *[group.rows.advantages[0]] * 2,
            *[-group.rows.advantages[0]] * 2,
        ]


def test_zero_variance_groups_are_replaced_by_others(tmp_path: Path) -> None:
    filtering = experiment(training={"filter_groups": True, "max_staleness": 0})
    with collector_of(filtering, tmp_path) as collector:
        requests = collector.admit(0)
        play(collector, requests[:2], [10.0, 10.0])
        play(collector, requests[2:4], [10.0, 0.0])
        deadline = time.monotonic() + 60.0
        while not (more := collector.admit(0)):
            assert collector.take_batch(0) is None and time.monotonic() < deadline
        play(collector, more, [0.0, 10.0])
        assert [group.group_id for group in batch_of(collector)] == ["g000001", "g000002"]
        assert collector.metrics()["buffer/groups_discarded_zero_variance"] == 1


def test_trajectories_of_evaluations_are_nobodys(tmp_path: Path) -> None:
    with collector_of(experiment(), tmp_path) as collector:
        request = RolloutRequest(TASKS.tasks[0], "evaluation000000", 0, seed=1, evaluation=True)
        collector.add([answered(request, 10.0)], 0)
        assert collector.replace([FailedRollout(request, "environment_error", "it broke")]) == []
        assert "buffer/trajectories_late" not in collector.metrics()


def test_what_fails_is_told_to_the_monitor_and_too_much_of_it_ends_the_run(tmp_path: Path) -> None:
    with collector_of(experiment(), tmp_path) as collector:
        told: list[tuple[str, str]] = []
        collector.failures.on_failure = lambda count: told.append((count.kind, count.reason))
        collector.judge.on_failure("judge", "unreachable", "nobody answers", 1)
        requests = collector.admit(0)
        # Half of four times the eight episodes that may be in flight.
        for _ in range(16):
            collector.failures.require_episodes()
            collector.replace([FailedRollout(requests[0], "environment_error", "it broke")])
        collector.failures.require_episodes()
        play(collector, requests[2:4], [10.0, 0.0])
        collector.replace([FailedRollout(requests[0], "environment_error", "it broke")])
        with pytest.raises(TooManyFailuresError, match="17 of the last 19 episodes failed"):
            collector.failures.require_episodes()
    assert told == [("judge", "unreachable"), *[("episode", "environment_error")] * 17]


def test_a_failed_rollout_is_replaced_by_the_same_one_with_another_seed(tmp_path: Path) -> None:
    with collector_of(experiment(), tmp_path) as collector:
        failed = collector.admit(0)[1]
        (replacement,) = collector.replace([FailedRollout(failed, "environment_error", "it broke")])
    assert replacement.seed != failed.seed
    assert (replacement.group_id, replacement.rollout_index) == (failed.group_id, 1)


def test_what_finishing_a_group_raises_reaches_whoever_takes_a_batch(tmp_path: Path) -> None:
    with collector_of(experiment(), tmp_path) as collector:
        requests = collector.admit(0)
        broken = [
            replace(played, steps=[replace(step, messages=()) for step in played.steps])
            for played in (answered(requests[0], 10.0), answered(requests[1], 0.0))
        ]
        with pytest.raises(ValueError, match="user message"):
            collector.add(broken, 0)
            batch_of(collector)


def test_groups_in_flight_are_tasks_again_after_a_restore(tmp_path: Path) -> None:
    with collector_of(experiment(), tmp_path) as collector:
        requests = collector.admit(0)
        play(collector, requests[:4], [10.0, 0.0])
        batch_of(collector)
        state = collector.get_state()
    with collector_of(experiment(), tmp_path) as restored:
        restored.set_state(state)
        tasks = [request.task for request in restored.admit(1)[::2]]
    assert tasks[:2] == [requests[4].task, requests[6].task]


def test_a_judges_words_complete_the_groups_of_a_batch(tmp_path: Path) -> None:
    asked = threading.Event()

    async def respond(body: dict[str, Any], number: int) -> web.Response:
        asked.set()
        return completion("The drawer was the place.")

    with running(respond) as endpoint:
        config = judged_experiment(endpoint.base_url).model_copy(update={"training": experiment().training})
        with collector_of(config, tmp_path) as collector:
            play(collector, collector.admit(0)[:4], [10.0, 0.0])
            batch = batch_of(collector)
            metrics = collector.metrics()
    assert asked.is_set()
    for group in batch:
        assert group.rows.has_teacher_prompt.all()
        assert all("The drawer was the place." in text for text in group.rows.contexts.values())
    assert metrics["judge/answers"] == 4 and metrics["judge/pending"] == 0


def test_nobody_is_asked_about_groups_that_will_be_trained_at_lambda_zero(tmp_path: Path) -> None:
    async def respond(body: dict[str, Any], number: int) -> web.Response:
        return completion("Well done.")

    with running(respond) as endpoint:
        config = judged_experiment(endpoint.base_url, hindsight={"lambda_decay_steps": 1}).model_copy(
            update={"training": experiment(training={"max_staleness": 2}).training}
        )
        with collector_of(config, tmp_path) as collector:
            # Of six groups two make a batch for update 0; the others are trained at λ = 0 at the earliest.
            play(collector, collector.admit(0), [10.0, 0.0])
            assert all(group.rows.has_teacher_prompt.all() for group in batch_of(collector))
            later = batch_of(collector, 1)
            assert not any(group.rows.has_teacher_prompt.any() for group in later)
            assert collector.metrics()["judge/requests"] == 4

"""Hinted repair: rollouts that wait for their group, what they are told, and what is made of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from buffer_helpers import group_of, trajectory
from config_helpers import MINIMAL, problem_of, write
from rollout_helpers import SETTINGS, ScriptedClient, episode, rollout_request
from trajectories import make_step, make_trajectory

from serl.batch.group import finish, is_taught
from serl.batch.metrics import batch_metrics
from serl.batch.repair import HintedRepair
from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.learner.response_tokens import ResponseTokens
from serl.rollout.prompt import PromptEncoder
from serl.rollout.told_prompt import with_context
from serl.types import RolloutRequest, TrajectoryGroup

REPAIRING = (
    "training.group_size=4",
    "hindsight.repair.num_rollouts=2",
    "hindsight.repair.max_success=0.5",
    "loss.truncated_importance_sampling_cap=2.0",
    "model.max_model_len=8192",
)


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    return load_experiment(write(tmp_path, MINIMAL), REPAIRING)


def released_after(repair: HintedRepair, rewards: list[float]) -> list[RolloutRequest]:
    """What is released once the first rollouts of a group have had these rewards, the last one first."""
    first = repair.hold_back(group_of("g", 4))
    assert [request.rollout_index for request in first] == [0, 1]
    for request, reward in reversed(list(zip(first, rewards, strict=True))):
        assert repair.take_released(lambda group_id: True) == []
        repair.add(trajectory(request, reward=reward))
    return repair.take_released(lambda group_id: True)


def test_the_last_rollouts_wait_for_the_first_and_are_told_of_a_success(
    experiment: ExperimentConfig, encoder: PromptEncoder
):
    repair = HintedRepair(experiment, encoder)
    released = released_after(repair, [0.0, 10.0])
    assert [request.rollout_index for request in released] == [2, 3]
    for request in released:
        assert request.hint is not None
        assert "## An attempt at this task that succeeded\nStep 1: <action>look</action>" in request.hint
    assert repair.take_released(lambda group_id: True) == []


def test_where_nothing_succeeded_they_are_told_of_the_best_failure(
    experiment: ExperimentConfig, encoder: PromptEncoder
):
    hints = {request.hint for request in released_after(HintedRepair(experiment, encoder), [-1.0, -2.0])}
    (hint,) = hints
    assert hint is not None and "## An attempt at this task that failed\nStep 1" in hint


def test_where_more_succeeded_than_asked_for_they_are_told_nothing(
    experiment: ExperimentConfig, encoder: PromptEncoder
):
    released = released_after(HintedRepair(experiment, encoder), [10.0, 10.0])
    assert [request.hint for request in released] == [None, None]


def test_a_hint_that_the_context_has_no_room_for_is_not_given(tmp_path: Path, encoder: PromptEncoder):
    narrow = (*REPAIRING, "rollout.max_prompt_length=512", "hindsight.max_context_length=512")
    experiment = load_experiment(write(tmp_path, MINIMAL), narrow)
    released = released_after(HintedRepair(experiment, encoder), [0.0, 0.0])
    assert [request.hint for request in released] == [None, None]


def test_rollouts_of_a_group_that_was_discarded_or_given_up_are_not_released(
    experiment: ExperimentConfig, encoder: PromptEncoder
):
    repair = HintedRepair(experiment, encoder)
    for give_up in (lambda: repair.take_released(lambda group_id: False), repair.forget):
        first = repair.hold_back(group_of("g", 4))
        repair.add(trajectory(first[0]))
        give_up()
        repair.add(trajectory(first[1]))
        assert repair.take_released(lambda group_id: True) == []


def test_without_repair_no_rollout_waits(tmp_path: Path, encoder: PromptEncoder):
    repair = HintedRepair(load_experiment(write(tmp_path, MINIMAL)), encoder)
    assert repair.hold_back(group_of("g", 8)) == group_of("g", 8)


def test_the_policy_reads_the_hint_and_the_step_has_its_prompt_without_it(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    client, counters = ScriptedClient(encoder), Counter[str]()
    request = replace(rollout_request(), hint="Go forward.")
    played = asyncio.run(episode(client, request, SETTINGS, counters, env_threads))
    assert played.hint == "Go forward."
    for step, (asked, _) in zip(played.steps, client.requests, strict=True):
        assert asked == encoder.encode(with_context(step.messages, "Go forward."))
        assert step.prompt_ids == encoder.encode(step.messages)
        assert encoder.decode(asked).endswith("\n\nGo forward.\n")
    assert counters["hints_left_out"] == 0


def test_a_hint_that_does_not_fit_is_left_out_and_counted(
    encoder: PromptEncoder, env_threads: ThreadPoolExecutor
):
    client, counters = ScriptedClient(encoder), Counter[str]()
    settings = replace(SETTINGS, max_hinted_prompt_length=40)
    request = replace(rollout_request(), hint="Go forward.")
    played = asyncio.run(episode(client, request, settings, counters, env_threads))
    assert [asked for asked, _ in client.requests] == [step.prompt_ids for step in played.steps]
    assert counters["hints_left_out"] == 2


def hinted_group() -> TrajectoryGroup:
    """Two failures, then a success and a failure with a hint."""
    hints = (None, None, "hint", "hint")
    trajectories = [
        make_trajectory([make_step()], reward, rollout_index=index, hint=hint)
        for index, (reward, hint) in enumerate(zip((0.0, 0.0, 10.0, 0.0), hints, strict=True))
    ]
    return TrajectoryGroup("g", trajectories[0].task, trajectories)


def test_a_hinted_success_has_the_groups_advantage_a_hinted_failure_none(tmp_path: Path):
    plain = ("advantage.args={normalize_std: false}", *REPAIRING)
    finished = finish(hinted_group(), load_experiment(write(tmp_path, MINIMAL), plain))
    # The mean is 2.5.
    assert finished.rows.advantages.tolist() == [-2.5, -2.5, 7.5, 0.0]
    assert finished.rows.hinted.tolist() == [False, False, True, True]
    assert finished.has_variance
    assert is_taught(finished.rows).tolist() == [True, True, False, False]


def test_success_is_that_of_the_rollouts_without_a_hint(experiment: ExperimentConfig):
    group = hinted_group()
    metrics = batch_metrics([finish(group, experiment).sums], group.trajectories, 0)
    assert metrics["rollout/success"] == metrics["rollout/return"] == 0.0
    assert (metrics["rollout/hinted_episodes"], metrics["rollout/hinted_success"]) == (2.0, 0.5)
    assert (metrics["batch/steps"], metrics["rollout/episode_steps"]) == (4.0, 1.0)
    assert metrics["rollout/all_failed_groups"] == 1.0


def test_log_probs_under_a_hint_are_not_compared_with_the_learners(experiment: ExperimentConfig):
    tokens = ResponseTokens.of(finish(hinted_group(), experiment).rows, weights_seq_no=0)
    assert tokens.on_policy.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.group_size=2", "a rollout without a hint has to come before them"),
        ("loss.truncated_importance_sampling_cap=null", "set a cap, such as 2.0"),
        ("model.max_model_len=4096", "the engine reads prompt and hint"),
        ("hindsight.repair.sources=[immediate_feedback]", "speaks of a step"),
        ("hindsight.repair.sources=[failed_sampel]", "did you mean 'failed_sample'?"),
    ],
)
def test_repair_that_cannot_be_is_refused(tmp_path: Path, override: str, expected: str):
    assert expected in problem_of(tmp_path, MINIMAL, *REPAIRING, override)


def test_an_agent_cannot_be_given_a_hint(tmp_path: Path):
    agent = ("env.name=agent", "env.args={run: 'm:f', tasks: t.jsonl}", "serving.gateway=true")
    assert "an agent makes its prompts itself" in problem_of(tmp_path, MINIMAL, *REPAIRING, *agent)

"""Teacher scores made while learners wait are those that the update would have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from learner_helpers import finished_update, learner_group, local_learner, sampled_groups, save_tiny_policy

from serl.learner.learner_group import LearnerError, SERLLearnerGroup
from serl.types import TrajectoryGroup

TEACHER = {"enabled": True, "mixing_lambda": 0.5, "lambda_decay_steps": 0, "teacher_sync_interval": 2}
REWARDS = [[10.0, 0.0, 0.0], [0.0, 0.0, 0.0], [10.0, 10.0, 0.0], [10.0, 0.0, 10.0]]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    return sampled_groups(model_dir, REWARDS)


def updated(group: SERLLearnerGroup, groups: list[TrajectoryGroup], weights_seq_no: int) -> dict[str, float]:
    return finished_update(group, group.start_update(groups, weights_seq_no)).metrics


def weights(group: SERLLearnerGroup) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in local_learner(group).policy.model.state_dict().items()}


def calls_of_teacher(group: SERLLearnerGroup, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each early call to the teacher had, filled as calls are made."""
    learner, counts = local_learner(group), []
    score = learner.score_teacher

    def counted(plan: Any, weights_seq_no: int) -> Any:
        counts.append(len(plan.samples))
        return score(plan, weights_seq_no)

    monkeypatch.setattr(learner, "score_teacher", counted)
    return counts


def test_weights_are_bit_for_bit_those_of_updates_that_score_everything_themselves(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    early, late = (learner_group(model_dir, hindsight=TEACHER) for _ in range(2))
    for weights_seq_no in range(3):
        early.score_early(groups[:1], weights_seq_no)
        early.score_early(groups[:3], weights_seq_no)
        metrics, expected = updated(early, groups, weights_seq_no), updated(late, groups, weights_seq_no)
        assert metrics["num_early_teacher_tokens"] > 0 and metrics["seconds_early_teacher"] > 0
        assert expected["num_early_teacher_tokens"] == expected["seconds_early_teacher"] == 0
        total = metrics["num_teacher_tokens"] + metrics["num_early_teacher_tokens"]
        assert total == expected["num_teacher_tokens"] > metrics["num_teacher_tokens"]
        for name in (
            "teacher_weight_mean",
            "teacher_abs_log_ratio_mean",
            "teacher_log_ratio_without_context",
            "loss",
        ):
            assert metrics[name] == expected[name]
        for name, tensor in weights(late).items():
            assert weights(early)[name].equal(tensor), f"{name} after update {weights_seq_no}"


def test_a_group_is_scored_once_and_only_its_rows_with_an_advantage(
    model_dir: Path, groups: list[TrajectoryGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER)
    counts = calls_of_teacher(group, monkeypatch)
    for complete in (groups[:1], groups[:2], groups[:2], groups[:3]):
        group.score_early(complete, 0)
    # 3 trajectories of 2 steps; the second group has no spread.
    assert counts == [6, 6]
    updated(group, groups, 0)
    group.score_early(groups[:1], 1)
    assert counts == [6, 6, 6]


def test_what_an_older_teacher_said_is_forgotten(
    model_dir: Path, groups: list[TrajectoryGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = (learner_group(model_dir, hindsight=TEACHER) for _ in range(2))
    counts = calls_of_teacher(early, monkeypatch)
    early.score_early(groups[:3], 0)
    assert updated(early, groups[3:], 0)["num_early_teacher_tokens"] == 0
    assert updated(early, groups[:1], 1)["num_early_teacher_tokens"] > 0
    updated(late, groups[3:], 0)
    updated(late, groups[:1], 1)
    # Update 2 has another teacher: the third group's early scores no longer count.
    early.score_early(groups[2:3], 2)
    assert counts == [12, 6]
    for group in (early, late):
        updated(group, groups[2:3], 2)
    for name, tensor in weights(late).items():
        assert weights(early)[name].equal(tensor), name


@pytest.mark.parametrize(
    "sections",
    [
        {"hindsight": TEACHER | {"mixing_lambda": 0.0}},
        {"hindsight": TEACHER, "advantage": {"estimator": "reinforce_pp_baseline"}},
        {"hindsight": TEACHER | {"sources": ["judge_current_traj"]}},
    ],
    ids=["lambda 0", "advantages of the whole batch", "a judge"],
)
def test_nothing_is_scored_early_without_need_or_before_all_is_known(
    model_dir: Path, groups: list[TrajectoryGroup], monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    group = learner_group(model_dir, **sections)
    counts = calls_of_teacher(group, monkeypatch)
    group.score_early(groups, 0)
    assert counts == []


def test_two_learners_share_the_early_scores_between_them(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    one = learner_group(model_dir, hindsight=TEACHER)
    two = learner_group(model_dir, hindsight=TEACHER, learner={"num_learners": 2})
    try:
        two.score_early(groups[:3], 0)
        handle = two.start_update(groups, 0)
        with pytest.raises(LearnerError, match="update 0 is under way"):
            two.score_early(groups, 0)
        result = finished_update(two, handle)
        expected = updated(one, groups, 0)
        assert result.metrics["num_early_teacher_tokens"] > 0
        for name in ("teacher_weight_mean", "teacher_abs_log_ratio_mean", "loss"):
            assert result.metrics[name] == pytest.approx(expected[name], rel=1e-5)
    finally:
        two.shutdown()
        ray.shutdown()

"""What the learner makes of the teacher's scores: baseline, centring, shuffle, log-ratio's parts, records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import (
    learner_group,
    local_learner,
    reference_logprobs,
    rows_of,
    sampled_groups,
    save_tiny_policy,
    started_update,
)
from torch import Tensor

from serl.batch.packing import LearnerPlan, plan_update
from serl.batch.rows import TrainingRows
from serl.learner.learner_group import SERLLearnerGroup, UpdateResult
from serl.learner.teacher import context_free_rows
from serl.types import TeacherRecord, TrajectoryGroup

TEACHER = {"enabled": True, "mixing_lambda": 0.5, "lambda_decay_steps": 0, "weight_clip": 0.9}
REWARDS = [[10.0, 0.0, 0.0], [0.0, 0.0, 0.0], [10.0, 10.0, 0.0]]
EVERYTHING = frozenset(f"g{group}-{rollout_index}" for group in range(3) for rollout_index in range(3))


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[TrajectoryGroup]:
    """Sampled by another policy than the learner's, so that teacher and student differ without a context."""
    return sampled_groups(save_tiny_policy(tmp_path_factory.mktemp("student"), seed=1), REWARDS)


def update(
    group: SERLLearnerGroup, groups: list[TrajectoryGroup], weights_seq_no: int = 0, **options: Any
) -> UpdateResult:
    result = group.poll_update(started_update(group, groups, weights_seq_no, **options), timeout_s=60.0)
    assert result is not None
    return result


def hindsight_group(model_dir: Path, **hindsight: Any) -> SERLLearnerGroup:
    return learner_group(model_dir, hindsight=TEACHER | hindsight)


def known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def records_of(result: UpdateResult) -> list[TeacherRecord]:
    """By trajectory and step."""
    return list(result.records.values())


def all_of(records: list[TeacherRecord], name: str) -> list[float]:
    return [value for record in records for value in known(getattr(record, name) or [])]


def reference_parts(model_dir: Path, rows: TrainingRows) -> tuple[list[float], list[float]]:
    """Context effects and log-ratios without context of the teacher's action tokens, by plain passes."""
    effects, log_ratios_without_context = [], []
    for row in rows:
        if row.teacher_prompt_ids is None:
            continue
        with_context = reference_logprobs(model_dir, row.teacher_prompt_ids, row.response_ids)
        without = reference_logprobs(model_dir, row.prompt_ids, row.response_ids)
        for index, is_action in enumerate(row.action_mask):
            if is_action:
                effects.append(with_context[index] - without[index])
                log_ratios_without_context.append(without[index] - row.old_logprobs[index])
    return effects, log_ratios_without_context


@pytest.mark.parametrize("baseline", ["student", "teacher"])
def test_both_baselines_split_the_log_ratio_into_its_two_parts(
    model_dir: Path, groups: list[TrajectoryGroup], baseline: str
) -> None:
    group = hindsight_group(model_dir, baseline=baseline)
    effects, log_ratios_without_context = reference_parts(model_dir, rows_of(group, groups))
    result = update(group, groups, recorded=EVERYTHING)
    assert all_of(records_of(result), "context_effects") == pytest.approx(effects, abs=1e-4)
    assert all_of(records_of(result), "log_ratios_without_context") == pytest.approx(
        log_ratios_without_context, abs=1e-4
    )
    log_ratios = (
        [e + d for e, d in zip(effects, log_ratios_without_context, strict=True)]
        if baseline == "student"
        else effects
    )
    assert all_of(records_of(result), "log_ratios") == pytest.approx(log_ratios, abs=1e-4)
    metrics = result.metrics
    for name, values in (
        ("context_effect", effects),
        ("log_ratio_without_context", log_ratios_without_context),
        ("log_ratio", log_ratios),
    ):
        suffix = "_mean" if name == "log_ratio" else ""
        assert metrics[f"teacher_{name}{suffix}"] == pytest.approx(sum(values) / len(values), abs=1e-4)
        sizes = [abs(value) for value in values]
        assert metrics[f"teacher_abs_{name}{suffix}"] == pytest.approx(sum(sizes) / len(sizes), abs=1e-4)
    assert sum(abs(drift) for drift in log_ratios_without_context) / len(log_ratios_without_context) > 0.1
    assert metrics["teacher_abs_log_ratio/immediate_feedback"] == pytest.approx(
        metrics["teacher_abs_log_ratio_mean"]
    )


def test_right_after_a_sync_on_policy_rows_have_no_log_ratio_without_context(model_dir: Path) -> None:
    fresh = sampled_groups(model_dir, REWARDS)
    metrics = update(hindsight_group(model_dir), fresh).metrics
    assert metrics["teacher_abs_log_ratio_without_context"] < 1e-5
    assert metrics["teacher_context_effect"] == pytest.approx(metrics["teacher_log_ratio_mean"], abs=1e-5)


def test_the_student_baseline_compares_a_bounded_sample_and_recorded_steps_first(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = hindsight_group(model_dir, log_ratio_sample_rows=3)
    result = update(group, groups, recorded=frozenset({"g2-0"}))
    assert [record.log_ratios_without_context is not None for record in records_of(result)] == [
        True,
        True,
    ]
    compared = result.metrics["teacher_num_compared_tokens"]
    own = sum(len(known(record.log_ratios)) for record in records_of(result))
    assert own < compared < result.metrics["teacher_num_selected_tokens"]
    off = update(hindsight_group(model_dir, log_ratio_sample_rows=0), groups).metrics
    assert "teacher_log_ratio_without_context" not in off
    assert off["teacher_weight_mean"] == pytest.approx(result.metrics["teacher_weight_mean"])


def test_the_compared_rows_come_from_the_seed(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = hindsight_group(model_dir, log_ratio_sample_rows=4)
    rows, settings = rows_of(group, groups), group._experiment.hindsight
    one = context_free_rows(rows, settings, (0, 5))
    assert one == context_free_rows(rows, settings, (0, 5))
    assert one != context_free_rows(rows, settings, (0, 6))
    assert len(one) == 4 and rows.has_teacher_prompt[one].all()


def test_the_teacher_scores_at_the_temperature_of_sampling(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER, rollout={"temperature": 2.0})
    result = update(group, groups, recorded=frozenset({"g0-0"}))
    (row, *_) = rows_of(group, groups)
    assert row.teacher_prompt_ids is not None
    weighted = reference_logprobs(model_dir, row.teacher_prompt_ids, row.response_ids, temperature=2.0)
    pairs = zip(weighted, row.old_logprobs, row.action_mask, strict=True)
    expected = [teacher - student for teacher, student, action in pairs if action]
    assert known(records_of(result)[0].log_ratios) == pytest.approx(expected, abs=1e-4)


def test_weights_follow_from_recorded_gaps_and_token_advantages_from_weights(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    records = records_of(update(hindsight_group(model_dir), groups, recorded=EVERYTHING))
    for record in records:
        assert record.advantage is not None
        sign = (record.advantage > 0) - (record.advantage < 0)
        for delta, weight, token_advantage in zip(
            record.log_ratios, record.weights, record.token_advantages, strict=True
        ):
            if delta is None or weight is None:
                assert delta is None and weight is None
                assert token_advantage == pytest.approx(record.advantage)
            else:
                assert weight == pytest.approx(min(max(2.718281828 ** (sign * delta), 0.1), 1.9), rel=1e-4)
                assert token_advantage == pytest.approx(record.advantage * (0.5 + 0.5 * weight), rel=1e-5)


def test_the_probability_of_an_action_is_that_of_a_plain_pass_and_weighs_its_thought_too(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = hindsight_group(model_dir, weight="action_probability")
    rows = rows_of(group, groups)
    records = records_of(update(group, groups, recorded=EVERYTHING))
    num_weighed = 0
    for row, record in zip(rows, records, strict=True):
        if row.teacher_prompt_ids is None or not record.advantage:
            assert known(record.weights) == pytest.approx([1.0] * len(known(record.weights)))
            continue
        scored = reference_logprobs(model_dir, row.teacher_prompt_ids, row.response_ids)
        probability = math.exp(sum(p for p, action in zip(scored, row.action_mask, strict=True) if action))
        weight = 1.0 + 0.9 * math.copysign(1.0, record.advantage) * (2.0 * probability - 1.0)
        assert record.weights == pytest.approx([weight] * len(row.response_ids), abs=1e-4)
        assert record.token_advantages == pytest.approx(
            [record.advantage * (0.5 + 0.5 * weight)] * len(row.response_ids), abs=1e-4
        )
        assert [value is not None for value in record.log_ratios] == list(row.action_mask)
        num_weighed += 1
    assert num_weighed > 3


def centred_weights(records: list[TeacherRecord], mean_of: dict[int, float]) -> list[float]:
    weights = []
    for record in records:
        assert record.advantage is not None
        sign = 1.0 if record.advantage > 0 else -1.0
        for delta in known(record.log_ratios):
            weights.append(min(max(2.718281828 ** (sign * (delta - mean_of[id(record)])), 0.1), 1.9))
    return weights


def test_centring_is_over_the_batch_or_over_each_step(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    plain = [
        record
        for record in records_of(update(hindsight_group(model_dir), groups, recorded=EVERYTHING))
        if known(record.log_ratios)
    ]
    log_ratios = all_of(plain, "log_ratios")
    mean = sum(log_ratios) / len(log_ratios)
    own_means = {
        id(record): sum(known(record.log_ratios)) / len(known(record.log_ratios)) for record in plain
    }
    for center, mean_of in (("batch", dict.fromkeys(own_means, mean)), ("step", own_means)):
        result = update(hindsight_group(model_dir, center=center), groups, recorded=EVERYTHING)
        expected = centred_weights(plain, mean_of)
        assert all_of(records_of(result), "weights") == pytest.approx(expected, rel=1e-3)
        assert all_of(records_of(result), "log_ratios") == pytest.approx(log_ratios)


def test_shuffling_moves_the_weights_anew_in_every_update_of_a_seed(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    def weights(weights_seq_no: int, **hindsight: Any) -> list[float]:
        group = hindsight_group(model_dir, **hindsight)
        return all_of(records_of(update(group, groups, weights_seq_no, recorded=EVERYTHING)), "weights")

    shuffled = weights(1, shuffle=True)
    assert sorted(shuffled) == pytest.approx(sorted(weights(1)))
    assert shuffled != weights(1)
    assert shuffled == weights(1, shuffle=True)
    assert shuffled != weights(2, shuffle=True)


def test_every_step_of_recorded_trajectories_has_a_record(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = hindsight_group(model_dir)
    result = update(group, groups, recorded=frozenset({"g2-1", "g1-0"}))
    assert list(result.records) == [
        *(("g1-0", 0), ("g1-0", 1)),
        *(("g2-1", 0), ("g2-1", 1)),
    ]
    idle, weighted = result.records["g1-0", 0], result.records["g2-1", 0]
    assert idle.advantage == 0.0 and idle.context is None
    assert set(idle.token_advantages) == {0.0}
    assert set(idle.weights) == set(idle.log_ratios) == {None}
    assert weighted.context is not None and "The action worked." in weighted.context
    row = next(s for s in rows_of(group, groups) if s.trajectory_id == "g2-1")
    assert [weight is not None for weight in weighted.weights] == row.action_mask
    assert {type(value) for value in weighted.token_advantages} == {float}
    assert records_of(update(group, groups)) == []


def test_steps_without_evidence_or_without_a_teacher_are_recorded_with_their_advantage(
    model_dir: Path,
) -> None:
    silent = sampled_groups(model_dir, REWARDS, feedback=None)
    for group in (hindsight_group(model_dir), learner_group(model_dir)):
        records = records_of(update(group, silent, recorded=EVERYTHING))
        assert len(records) == 18
        for record in records:
            assert record.context is None and record.log_ratios_without_context is None
            assert set(record.weights) == {None}
            assert record.token_advantages == pytest.approx([record.advantage] * len(record.weights))


def test_teacher_tokens_and_seconds_are_counted(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = hindsight_group(model_dir, baseline="teacher")
    metrics = update(group, groups).metrics
    weighted = [row for row in rows_of(group, groups) if row.teacher_prompt_ids]
    expected = sum(
        len(s.teacher_prompt_ids or []) + len(s.prompt_ids) + 2 * len(s.response_ids) for s in weighted
    )
    assert metrics["num_teacher_tokens"] == expected
    assert metrics["teacher_tokens_per_s"] == pytest.approx(expected / metrics["seconds_teacher"])


def test_the_parts_of_two_learners_add_up_to_the_gradient_of_one(
    model_dir: Path, groups: list[TrajectoryGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What learners send each other is played back here; `test_learner_group` has real ones."""
    hindsight = TEACHER | {"baseline": "teacher", "center": "batch"}
    loss = {"kl_coefficient": 0.1, "entropy_coefficient": 0.05}
    group = learner_group(model_dir, hindsight=hindsight, loss=loss)
    rows = rows_of(group, groups)

    def plans(num_learners: int) -> list[LearnerPlan]:
        return plan_update(
            rows,
            num_learners=num_learners,
            num_minibatches=1,
            num_epochs=1,
            micro_batch_tokens=300,
            seed=(0,),
            train_every_row=True,
            context_free_rows=context_free_rows(rows, group._experiment.hindsight, (0,)),
        )

    sent: list[Tensor] = []

    def send(values: Tensor) -> tuple[Tensor, int]:
        sent.append(values)
        return values, 0

    def receive(values: Tensor) -> tuple[Tensor, int]:
        return torch.cat(sent), 0

    learner = local_learner(group)
    (alone,) = (learner.gradients(plan, 0) for plan in plans(1))
    parts = plans(2)
    assert all(part.rows for part in parts)
    monkeypatch.setattr("serl.learner.learner.whole_batch", send)
    for part in parts:
        learner.gradients(part, 0)
    assert [len(values) > 0 for values in sent] == [True, True]
    monkeypatch.setattr("serl.learner.learner.whole_batch", receive)
    together = [learner.gradients(part, 0) for part in parts]
    for name, whole in alone.items():
        error = float((together[0][name] + together[1][name] - whole).abs().max())
        assert error <= 1e-5 * float(whole.abs().max()), name


def test_an_update_without_any_row_that_has_an_advantage_changes_nothing(model_dir: Path) -> None:
    group = hindsight_group(model_dir)
    metrics = update(group, sampled_groups(model_dir, [[0.0, 0.0], [10.0, 10.0]])).metrics
    assert (metrics["num_rows_with_advantage"], metrics["num_optimizer_steps"]) == (0, 0)
    assert metrics["teacher_num_selected_tokens"] == 0

"""Distillation in a real learner: what it is drawn to, on which steps, by which teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import distributions, local_learner, rows_of, sampled_groups, update, weights
from learner_helpers import learner_group as make_group
from torch import Tensor
from transformers import AutoModelForCausalLM

from serl.learner.learner_group import SERLLearnerGroup
from serl.types import TrajectoryGroup

pytestmark = pytest.mark.usefixtures("one_torch_thread")

DISTILL = {"enabled": True, "objective": "distill"}


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    return sampled_groups(model_dir, [[0.0, 0.0], [10.0, 0.0]])


def learner_group(
    model_dir: Path, distill: dict[str, Any] | None = None, **hindsight: Any
) -> SERLLearnerGroup:
    return make_group(model_dir, hindsight=DISTILL | {"distill": distill or {}} | hindsight)


def mean_divergence(model_dir: Path, group: SERLLearnerGroup, groups: list[TrajectoryGroup]) -> float:
    """KL from the starting policy with evidence to the learner's policy without, of plain forward passes."""
    teacher = AutoModelForCausalLM.from_pretrained(model_dir)
    policy = copy.deepcopy(local_learner(group).policy.model)
    policy.set_attn_implementation("sdpa")
    found: list[Tensor] = []
    for row in rows_of(group, groups):
        if not row.distilled or row.teacher_prompt_ids is None:
            continue
        with torch.no_grad():
            expected = distributions(teacher, row.teacher_prompt_ids, row.response_ids)
            own = distributions(policy, row.prompt_ids, row.response_ids)
        per_token = (expected.exp() * (expected - own)).sum(-1)
        found.append(per_token[torch.tensor(row.action_mask)])
    return float(torch.cat(found).mean())


def test_updates_draw_the_student_to_what_the_teacher_says_with_the_evidence(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, {"coefficient": 1.0}, teacher="frozen")
    before = mean_divergence(model_dir, group, groups)
    metrics = update(group, groups, 0)
    assert metrics["distill_divergence"] == pytest.approx(before, rel=1e-4)
    assert metrics["distill_gate"] == 1.0 and metrics["effective_distill_coefficient"] == 1.0
    assert metrics["effective_lambda"] == 0.0
    rows = rows_of(group, groups)
    assert metrics["num_distilled_tokens"] == sum(sum(row.action_mask) for row in rows if row.distilled)
    for number in range(1, 6):
        update(group, groups, number)
    assert mean_divergence(model_dir, group, groups) < 0.7 * before


def test_groups_without_variance_train_where_they_are_distilled_and_nowhere_else(model_dir: Path) -> None:
    flat = sampled_groups(model_dir, [[0.0, 0.0]])
    group = learner_group(model_dir, {"coefficient": 1.0, "route": "zero_variance"})
    before = weights(group)
    metrics = update(group, flat)
    assert metrics["num_distilled_tokens"] > 0
    assert any((tensor - before[name]).abs().max() > 1e-4 for name, tensor in weights(group).items())
    mixed = sampled_groups(model_dir, [[10.0, 0.0]])
    assert update(group, mixed, 1)["num_distilled_tokens"] == 0


def test_a_top_k_of_the_whole_vocabulary_is_exact_and_a_smaller_one_bounds_it_from_below(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    exact = mean_divergence(model_dir, learner_group(model_dir), groups)
    shares = [update(learner_group(model_dir, {"top_k": k}), groups)["distill_divergence"] for k in (5, 300)]
    assert shares[1] == pytest.approx(exact, rel=1e-4)
    assert 0.0 < shares[0] < exact


def test_the_gate_is_that_of_the_log_ratios(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    gated = {"gate": "sigmoid", "gate_sharpness": 2.0}
    group = learner_group(model_dir, gated, objective="both", lambda_decay_steps=0)
    metrics = update(group, groups)
    ratios: list[float] = []
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    for row in rows_of(group, groups):
        if row.distilled and row.teacher_prompt_ids is not None:
            with torch.no_grad():
                scored = distributions(model, row.teacher_prompt_ids, row.response_ids)
            sampled = scored.gather(1, torch.tensor(row.response_ids)[:, None])[:, 0]
            deltas = sampled - torch.tensor(row.old_logprobs)
            ratios += deltas[torch.tensor(row.action_mask)].tolist()
    assert metrics["distill_gate"] == pytest.approx(
        float(torch.sigmoid(2.0 * torch.tensor(ratios)).mean()), abs=1e-4
    )
    assert metrics["effective_lambda"] == 0.5


def test_a_teacher_has_the_weights_that_its_kind_says(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    def after_two_updates(**hindsight: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        group = learner_group(model_dir, teacher_sync_interval=1, **hindsight)
        learner = local_learner(group)
        policies: list[Tensor] = []
        for number in range(2):
            policies.append(flat(learner.policy))
            update(group, groups, number)
        return policies[0], policies[1], None if learner.teacher is None else flat(learner.teacher)

    start, second, teacher = after_two_updates(teacher="synced")
    assert teacher is not None and teacher.equal(second) and not start.equal(second)
    start, _, teacher = after_two_updates(teacher="frozen")
    assert teacher is not None and teacher.equal(start)
    start, second, teacher = after_two_updates(teacher="ema", teacher_ema_decay=0.75)
    assert teacher is not None and teacher.allclose(0.75 * start + 0.25 * second, atol=1e-6)
    *_, teacher = after_two_updates(teacher="live")
    assert teacher is None


def test_a_live_teacher_says_what_a_copy_of_the_policy_says(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    live, synced = (
        learner_group(model_dir, teacher=teacher, teacher_sync_interval=1, objective="both")
        for teacher in ("live", "synced")
    )
    for number in range(2):
        update(live, groups, number)
        update(synced, groups, number)
    for name, tensor in weights(live).items():
        assert tensor.equal(weights(synced)[name]), name


def flat(module: Any) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).clone()

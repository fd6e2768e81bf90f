"""KL to the policy that the run began with, entropy bonus and Dr.GRPO's constant, on a real learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import learner_group, local_learner, sampled_groups, update

from serl.learner.learner_group import SERLLearnerGroup
from serl.learner.token_scores import score_tokens
from serl.models.weights import named_weights
from serl.types import TrajectoryGroup

SLOW = {"lr": 1e-3}


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    return sampled_groups(model_dir, [[10.0, 0.0, 0.0], [10.0, 10.0, 0.0]])


@pytest.fixture(scope="module")
def idle_groups(model_dir: Path) -> list[TrajectoryGroup]:
    """No row has an advantage."""
    return sampled_groups(model_dir, [[0.0, 0.0, 0.0], [10.0, 10.0, 10.0]])


def flat_weights(group: SERLLearnerGroup) -> torch.Tensor:
    weights = named_weights(local_learner(group).policy.model).values()
    return torch.cat([weight.detach().flatten() for weight in weights]).clone()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_is_to_the_policy_that_the_run_began_with(
    model_dir: Path, groups: list[TrajectoryGroup], estimator: str
) -> None:
    group = learner_group(model_dir, learner=SLOW, loss={"kl_coefficient": 0.1, "kl_estimator": estimator})
    assert update(group, groups)["reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert abs(update(group, groups, 1)["reference_kl"]) > 1e-5
    free = learner_group(model_dir, learner=SLOW)
    assert local_learner(free)._reference is None
    assert "reference_kl" not in update(free, groups)


def test_the_kl_pulls_back_with_rows_that_have_no_advantage(
    model_dir: Path, groups: list[TrajectoryGroup], idle_groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, learner=SLOW, loss={"kl_coefficient": 1.0, "kl_estimator": "k2"})
    update(group, groups)
    away = [update(group, idle_groups, step)["reference_kl"] for step in range(1, 7)]
    assert away[0] > 1e-4
    assert away[-1] < 0.7 * away[0]


def test_a_resumed_run_keeps_the_reference_it_began_with(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"learner": SLOW, "loss": {"kl_coefficient": 0.1}}
    original = learner_group(model_dir, **options)
    update(original, groups)
    original.save(tmp_path, timeout_s=60.0)
    assert not list((tmp_path / "learner").glob("reference*"))
    resumed = learner_group(model_dir, **options)
    resumed.load(tmp_path, timeout_s=60.0)
    expected, metrics = update(original, groups, 1), update(resumed, groups, 1)
    assert metrics["reference_kl"] == expected["reference_kl"] > 1e-6
    assert torch.equal(flat_weights(original), flat_weights(resumed))


def test_the_entropy_bonus_raises_entropy_and_its_absence_leaves_idle_rows_alone(
    model_dir: Path, idle_groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, learner=SLOW, loss={"entropy_coefficient": 0.1})
    before, later = (update(group, idle_groups, step) for step in (0, 1))
    assert later["entropy"] > before["entropy"] + 1e-3
    assert before["loss"] == pytest.approx(-0.1 * before["entropy"], rel=1e-4)
    plain = learner_group(model_dir, learner=SLOW)
    unmoved = flat_weights(plain)
    update(plain, idle_groups)
    assert torch.equal(flat_weights(plain), unmoved)


def test_dr_grpos_constant_is_the_longest_response_allowed(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    losses = {
        aggregation: update(
            learner_group(model_dir, loss={"aggregation": aggregation}, rollout={"max_response_length": 40}),
            groups,
        )["loss"]
        for aggregation in ("seq-mean-token-sum", "seq-mean-token-sum-norm")
    }
    assert losses["seq-mean-token-sum"] != 0.0
    assert losses["seq-mean-token-sum-norm"] == pytest.approx(losses["seq-mean-token-sum"] / 40, rel=1e-4)


def test_gspo_trains(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = learner_group(model_dir, loss={"name": "gspo", "aggregation": "seq-mean-token-mean"})
    before = flat_weights(group)
    metrics = update(group, groups)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert not torch.equal(flat_weights(group), before)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_scoring_in_pieces_changes_neither_values_nor_gradients(entropy_gradient: bool) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(23, 11), torch.randint(0, 11, (23,))
    results = []
    for size in (10**6, 4 * 11):  # at once; four tokens a piece
        own = logits.clone().requires_grad_()
        scored = score_tokens(own, targets, 0.7, entropy_gradient=entropy_gradient, max_piece_elements=size)
        assert scored.entropies.requires_grad == entropy_gradient
        (scored.logprobs * torch.arange(23)).sum().add(
            (scored.entropies * torch.arange(23)).sum() if entropy_gradient else 0.0
        ).backward()
        results.append((scored.logprobs.detach(), scored.entropies.detach(), own.grad))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole)

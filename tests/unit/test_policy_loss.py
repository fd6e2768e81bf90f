"""Policy losses, KL, entropy and importance weights against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from serl.config import Aggregation, KLEstimator, LossSection
from serl.config.registry import LOSSES
from serl.learner.loss_terms import kl_per_token
from serl.learner.losses import (
    Denominators,
    LossTokens,
    entropy_bonus,
    kl_loss,
    policy_loss,
    truncated_importance_weights,
)
from serl.learner.losses.gspo import gspo
from serl.learner.losses.ppo_clip import ppo_clip
from serl.learner.token_scores import score_tokens

PPO = LossSection(args={"clip_low": 0.2, "clip_high": 0.3})
GSPO = LossSection(name="gspo", aggregation="seq-mean-token-mean")
NAN = float("nan")


def tokens_of(
    logprobs: Tensor, row_ids: list[int], *, old: Tensor | None = None, **fields: Any
) -> LossTokens:
    """A whole batch of tokens; those without ``advantages`` are for terms that have none."""
    ids = torch.tensor(row_ids, dtype=torch.long)
    return LossTokens(
        logprobs=logprobs,
        old_logprobs=torch.full_like(logprobs, NAN) if old is None else old,
        advantages=fields.pop("advantages", torch.full_like(logprobs, NAN)),
        row_ids=ids,
        denominators=fields.pop("denominators", Denominators(len(row_ids), len(set(row_ids)))),
        **fields,
    )


def make_tokens(ratios: list[float], advantages: list[float], row_ids: list[int], **extra: Any) -> LossTokens:
    old = torch.full((len(ratios),), -1.0)
    logprobs = (old + torch.tensor(ratios).log()).requires_grad_()
    return tokens_of(logprobs, row_ids, old=old, advantages=torch.tensor(advantages), **extra)


def loss_and_gradient(
    tokens: LossTokens, section: LossSection = PPO
) -> tuple[float, list[float], dict[str, float]]:
    loss, metrics = policy_loss(tokens, section)
    (gradient,) = torch.autograd.grad(loss, tokens.logprobs)
    assert not any(value.requires_grad for value in metrics.values())
    return loss.item(), gradient.tolist(), {key: value.item() for key, value in metrics.items()}


def test_ppo_clips_only_where_the_update_would_go_further():
    tokens = make_tokens([1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0], [0, 0, 1, 1])
    loss, gradient, metrics = loss_and_gradient(tokens)
    # Losses: −1.3 (clipped), −0.5, +1.5, +0.8 (clipped).
    assert loss == pytest.approx(0.5 / 4)
    assert gradient == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0])
    assert metrics["clip_fraction"] == pytest.approx(0.5)
    assert metrics["ratio_mean"] == pytest.approx(1.0)


def test_dual_clip_bounds_the_loss_of_negative_advantages_and_can_be_off():
    tokens = make_tokens([5.0, 5.0], [-2.0, 2.0], [0, 0])
    loss, gradient, metrics = loss_and_gradient(tokens)
    assert loss == pytest.approx((6.0 - 2.6) / 2)
    assert gradient == [0.0, 0.0]
    assert (metrics["dual_clip_fraction"], metrics["clip_fraction"]) == (0.5, 0.5)
    off = LossSection(args={**PPO.args, "dual_clip": 0})
    loss, gradient, metrics = loss_and_gradient(tokens, off)
    assert loss == pytest.approx((10.0 - 2.6) / 2)
    assert gradient == pytest.approx([5.0, 0.0])
    assert metrics["dual_clip_fraction"] == 0.0


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", 16.0 / 4),
        ("seq-mean-token-sum", (6.0 + 10.0) / 2),
        ("seq-mean-token-mean", (2.0 + 10.0) / 2),
        ("seq-mean-token-sum-norm", (6.0 + 10.0) / 2 / 5),
    ],
)
def test_the_aggregations(aggregation: Aggregation, expected: float):
    values, weights = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    tokens = tokens_of(
        values,
        [0, 0, 0, 1],
        denominators=Denominators(num_loss_tokens=4, num_rows=2, max_response_length=5),
        aggregation=aggregation,
        importance_weights=weights,
    )
    assert tokens.aggregate_unweighted(values).item() == pytest.approx(expected)
    assert tokens.aggregate(values).item() == pytest.approx(2 * expected)


def test_dr_grpos_aggregation_needs_its_constant():
    tokens = tokens_of(torch.zeros(2), [0, 1], aggregation="seq-mean-token-sum-norm")
    with pytest.raises(ValueError, match="max_response_length"):
        tokens.aggregate(torch.zeros(2))


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
@pytest.mark.parametrize("loss_function", [ppo_clip, gspo])
def test_micro_batches_add_up_to_the_batch(loss_function: Callable[..., Any], aggregation: Aggregation):
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 1, 6, 2, 4]
    ids = torch.arange(5).repeat_interleave(torch.tensor(lengths))
    old = -torch.rand(16, generator=generator)
    logprobs = (old + 0.4 * torch.randn(16, generator=generator)).requires_grad_()
    advantages = torch.randn(16, generator=generator)
    denominators = Denominators(num_loss_tokens=16, num_rows=5, max_response_length=7)

    def result(first_row: int, end_row: int) -> tuple[Tensor, dict[str, Tensor]]:
        part = (ids >= first_row) & (ids < end_row)
        row_ids = ids[part] - first_row
        return loss_function(
            LossTokens(logprobs[part], old[part], advantages[part], row_ids, denominators, aggregation)
        )

    whole_loss, whole_metrics = result(0, 5)
    # The last part is empty: a dummy micro-batch.
    parts = [result(first, end) for first, end in ((0, 2), (2, 3), (3, 5), (5, 5))]
    total = torch.stack([loss for loss, _ in parts]).sum()
    torch.testing.assert_close(total, whole_loss)
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in (total, whole_loss)]
    torch.testing.assert_close(*gradients)
    for name, value in whole_metrics.items():
        torch.testing.assert_close(torch.stack([metrics[name] for _, metrics in parts]).sum(), value)


@pytest.mark.parametrize("section", [PPO, GSPO], ids=["ppo_clip", "gspo"])
def test_an_empty_micro_batch_has_loss_zero_and_a_gradient(section: LossSection):
    logprobs, nothing = torch.zeros(3, requires_grad=True), torch.zeros(3, dtype=torch.bool)
    tokens = tokens_of(logprobs[nothing], [], aggregation=section.aggregation)
    loss, _ = policy_loss(tokens, section)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [0.0, 0.0, 0.0]


def test_gspo_has_one_ratio_per_sequence_and_a_gradient_per_token():
    tokens = make_tokens([1.2, 1.0, 0.9], [1.0, 2.0, -1.0], [0, 0, 1], aggregation=GSPO.aggregation)
    loss, gradient, metrics = loss_and_gradient(tokens, GSPO)
    s = math.sqrt(1.2)  # geometric mean of 1.2 and 1.0
    assert loss == pytest.approx(((-s - 2 * s) / 2 + 0.9) / 2)
    assert gradient == pytest.approx([-s / 4, -2 * s / 4, 0.9 / 2])
    assert metrics["clip_fraction"] == 0.0


def test_gspo_clips_whole_sequences():
    tokens = make_tokens([2.0, 2.0], [1.0, 1.0], [0, 0], aggregation=GSPO.aggregation)
    loss, gradient, metrics = loss_and_gradient(tokens, GSPO)
    assert (loss, metrics["clip_fraction"]) == (pytest.approx(-1.2), 1.0)
    assert gradient == [0.0, 0.0]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("section", [PPO, GSPO], ids=["ppo_clip", "gspo"])
def test_gradients_stay_finite_where_a_token_became_impossible(section: LossSection, advantage: float):
    old = torch.tensor([-200.0, -1.0])
    logprobs = torch.tensor([-1.0, -200.0], requires_grad=True)
    tokens = tokens_of(logprobs, [0, 1], old=old, advantages=torch.full((2,), advantage))
    loss, gradient, _ = loss_and_gradient(tokens, section)
    assert math.isfinite(loss)
    assert all(math.isfinite(value) for value in gradient)


def test_importance_weights_scale_the_loss_of_each_token():
    weights, metrics = truncated_importance_weights(
        torch.tensor([0.0, 0.0]).log_softmax(0),
        torch.tensor([0.5, 0.125]).log(),
        Denominators(2, 1),
        cap=2.0,
    )
    assert weights.tolist() == pytest.approx([1.0, 2.0])
    assert metrics["importance_capped_fraction"].item() == 0.5
    assert metrics["behaviour_kl"].item() == pytest.approx(-math.log(4) / 2)
    tokens = make_tokens([1.0, 1.0], [1.0, 3.0], [0, 0], importance_weights=weights)
    loss, gradient, _ = loss_and_gradient(tokens)
    assert loss == pytest.approx(-(1.0 + 6.0) / 2)
    assert gradient == pytest.approx([-0.5, -3.0])
    with pytest.raises(ValueError, match="positive"):
        truncated_importance_weights(weights, weights, Denominators(2, 1), cap=0.0)


@pytest.mark.parametrize(
    ("estimator", "expected", "slope"),
    [
        ("k1", math.log(2.0), 1.0),
        ("k2", math.log(2.0) ** 2 / 2, math.log(2.0)),
        ("k3", 0.5 - 1.0 + math.log(2.0), 0.5),
    ],
)
def test_kl_estimators_and_their_gradients(estimator: KLEstimator, expected: float, slope: float):
    logprobs = torch.tensor([math.log(0.5)], requires_grad=True)
    value = kl_per_token(logprobs, torch.tensor([math.log(0.25)]), estimator)
    assert value.item() == pytest.approx(expected)
    assert torch.autograd.grad(value, logprobs)[0].item() == pytest.approx(slope)


def test_kl_loss_is_the_weighted_aggregate():
    tokens = tokens_of(torch.tensor([-1.0, -1.0, -1.0]), [0, 0, 1], aggregation="seq-mean-token-sum")
    reference = torch.tensor([-2.0, -1.0, -4.0])
    loss, metrics = kl_loss(tokens, reference, coefficient=0.1, estimator="k1")
    assert loss.item() == pytest.approx(0.1 * (1.0 + 3.0) / 2)
    assert metrics["reference_kl"].item() == pytest.approx(4.0 / 3)


def test_entropy_and_its_bonus():
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0], [math.log(3.0), 0.0]], requires_grad=True)
    scores = score_tokens(logits, torch.zeros(3, dtype=torch.long), 1.0, entropy_gradient=True)
    skewed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert scores.entropies.tolist() == pytest.approx([math.log(2.0), 0.0, skewed], abs=1e-6)
    tokens = tokens_of(scores.logprobs, [0, 0, 0])
    bonus, metrics = entropy_bonus(tokens, scores.entropies, coefficient=0.3)
    assert bonus.item() == pytest.approx(-0.1 * (math.log(2.0) + skewed))
    assert metrics["entropy"].item() == pytest.approx((math.log(2.0) + skewed) / 3)
    assert torch.isfinite(torch.autograd.grad(bonus, logits)[0]).all()


OWN_LOSS = """
from serl.learner.losses import LossTokens, register_policy_loss

@register_policy_loss("reinforce")
def reinforce(tokens: LossTokens, *, scale: float = 1.0):
    losses = -scale * tokens.advantages * tokens.logprobs
    return tokens.aggregate(losses), {"reinforce_mean": tokens.token_mean(losses)}
"""


def test_a_loss_of_ones_own_is_named_by_its_module_and_given_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_loss.py").write_text(OWN_LOSS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    section = LossSection(name="own_loss:reinforce", args={"scale": 2})
    loss, gradient, metrics = loss_and_gradient(make_tokens([1.0, 1.0], [1.0, 3.0], [0, 0]), section)
    assert loss == metrics["reinforce_mean"] == pytest.approx(2.0 * (1.0 + 3.0) / 2)
    assert gradient == pytest.approx([-1.0, -3.0])


def test_every_module_of_the_package_is_a_loss():
    assert LOSSES.built_in() == ["gspo", "ppo_clip"]
    assert [LOSSES.get(name).function for name in LOSSES.built_in()] == [gspo, ppo_clip]

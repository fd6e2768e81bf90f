"""Policy losses, KL, entropy and importance weights against numbers computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from serl.learner.losses import (
    Denominators,
    LossTokens,
    aggregate,
    entropy_bonus,
    kl_loss,
    kl_per_token,
    policy_loss,
    register_policy_loss,
    truncated_importance_weights,
)
from serl.learner.token_scores import score_tokens

CLIP = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}
AGGREGATIONS = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def make_tokens(ratios: list[float], advantages: list[float], row_ids: list[int], **extra) -> LossTokens:
    old = torch.full((len(ratios),), -1.0)
    logprobs = (old + torch.tensor(ratios).log()).requires_grad_()
    return LossTokens(logprobs, old, torch.tensor(advantages), torch.tensor(row_ids), **extra)


def loss_and_gradient(tokens: LossTokens, name: str, options: dict, denominators=None):
    loss, metrics = policy_loss(tokens, name, options, denominators)
    (gradient,) = torch.autograd.grad(loss, tokens.logprobs)
    return loss.item(), gradient.tolist(), {key: value.item() for key, value in metrics.items()}


def test_ppo_clips_only_where_the_update_would_go_further():
    tokens = make_tokens([1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0], [0, 0, 1, 1])
    loss, gradient, metrics = loss_and_gradient(tokens, "ppo_clip", {**CLIP, "aggregation": "token-mean"})
    # Losses: −1.3 (clipped), −0.5, +1.5, +0.8 (clipped).
    assert loss == pytest.approx(0.5 / 4)
    assert gradient == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0])
    assert metrics["clip_fraction"] == pytest.approx(0.5)
    assert metrics["ratio_mean"] == pytest.approx(1.0)


def test_dual_clip_bounds_the_loss_of_negative_advantages_and_can_be_off():
    tokens = make_tokens([5.0, 5.0], [-2.0, 2.0], [0, 0])
    loss, gradient, metrics = loss_and_gradient(tokens, "ppo_clip", {**CLIP, "aggregation": "token-mean"})
    assert loss == pytest.approx((6.0 - 2.6) / 2)
    assert gradient == [0.0, 0.0]
    assert (metrics["dual_clip_fraction"], metrics["clip_fraction"]) == (0.5, 0.5)
    off = {**CLIP, "dual_clip": 0.0, "aggregation": "token-mean"}
    loss, gradient, metrics = loss_and_gradient(tokens, "ppo_clip", off)
    assert loss == pytest.approx((10.0 - 2.6) / 2)
    assert gradient == pytest.approx([5.0, 0.0])
    assert metrics["dual_clip_fraction"] == 0.0


def test_the_aggregations():
    values, ids = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 0, 1])
    whole = Denominators(num_loss_tokens=4, num_rows=2)
    assert aggregate(values, ids, "token-mean", whole).item() == 4.0
    assert aggregate(values, ids, "seq-mean-token-sum", whole).item() == 8.0
    assert aggregate(values, ids, "seq-mean-token-mean", whole).item() == 6.0
    dr_grpo = Denominators(num_loss_tokens=4, num_rows=2, max_response_length=5)
    assert aggregate(values, ids, "seq-mean-token-sum-norm", dr_grpo).item() == pytest.approx(16.0 / 2 / 5)
    with pytest.raises(ValueError, match="max_response_length"):
        aggregate(values, ids, "seq-mean-token-sum-norm", whole)
    with pytest.raises(ValueError, match="unknown aggregation"):
        aggregate(values, ids, "median", whole)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", ["ppo_clip", "gspo"])
def test_micro_batches_add_up_to_the_batch(name: str, aggregation: str):
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 1, 6, 2, 4]
    ids = torch.arange(5).repeat_interleave(torch.tensor(lengths))
    old = -torch.rand(16, generator=generator)
    logprobs = (old + 0.4 * torch.randn(16, generator=generator)).requires_grad_()
    advantages = torch.randn(16, generator=generator)
    options = {**CLIP, "aggregation": aggregation}
    batch = LossTokens(logprobs, old, advantages, ids)
    denominators = Denominators.of(batch)
    assert (denominators.num_loss_tokens, denominators.num_rows) == (16, 5)
    denominators = replace(denominators, max_response_length=7)
    whole_loss, whole_gradient, whole_metrics = loss_and_gradient(batch, name, options, denominators)

    total, metrics = torch.zeros(()), dict.fromkeys(whole_metrics, 0.0)
    for first, last in ((0, 2), (2, 3), (3, 5), (5, 5)):  # the last part is empty: a dummy micro-batch
        part = (ids >= first) & (ids < last)
        tokens = LossTokens(logprobs[part], old[part], advantages[part], ids[part] - first)
        loss, part_metrics = policy_loss(tokens, name, options, denominators)
        total = total + loss
        metrics = {key: value + part_metrics[key].item() for key, value in metrics.items()}
    assert total.item() == pytest.approx(whole_loss, abs=1e-6)
    assert torch.autograd.grad(total, logprobs)[0].tolist() == pytest.approx(whole_gradient, abs=1e-6)
    assert metrics == pytest.approx(whole_metrics, abs=1e-6)


def test_an_empty_micro_batch_has_loss_zero_and_a_gradient():
    logprobs = torch.zeros(3, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool)
    for name in ("ppo_clip", "gspo"):
        no_ids = torch.zeros(0, dtype=torch.long)
        tokens = LossTokens(logprobs[nothing], torch.zeros(0), torch.zeros(0), no_ids)
        loss, _ = policy_loss(tokens, name, {**CLIP, "aggregation": "token-mean"}, Denominators(0, 0))
        assert loss.item() == 0.0
        assert torch.autograd.grad(loss, logprobs)[0].tolist() == [0.0, 0.0, 0.0]


def test_gspo_has_one_ratio_per_sequence_and_a_gradient_per_token():
    tokens = make_tokens([1.2, 1.0, 0.9], [1.0, 2.0, -1.0], [0, 0, 1])
    loss, gradient, metrics = loss_and_gradient(tokens, "gspo", {"clip_low": 0.2, "clip_high": 0.2})
    s = math.sqrt(1.2)  # geometric mean of 1.2 and 1.0
    assert loss == pytest.approx(((-s - 2 * s) / 2 + 0.9) / 2)
    assert gradient == pytest.approx([-s / 4, -2 * s / 4, 0.9 / 2])
    assert metrics["clip_fraction"] == 0.0


def test_gspo_clips_whole_sequences():
    tokens = make_tokens([2.0, 2.0], [1.0, 1.0], [0, 0])
    loss, gradient, metrics = loss_and_gradient(tokens, "gspo", {"clip_low": 0.2, "clip_high": 0.2})
    assert (loss, metrics["clip_fraction"]) == (pytest.approx(-1.2), 1.0)
    assert gradient == [0.0, 0.0]


def test_gradients_stay_finite_where_a_token_became_impossible():
    old = torch.tensor([-200.0, -1.0])
    logprobs = torch.tensor([-1.0, -200.0], requires_grad=True)
    for advantage in (1.0, -1.0):
        for name in ("ppo_clip", "gspo"):
            tokens = LossTokens(logprobs, old, torch.full((2,), advantage), torch.tensor([0, 1]))
            loss, gradient, _ = loss_and_gradient(tokens, name, {**CLIP, "aggregation": "token-mean"})
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
    loss, gradient, _ = loss_and_gradient(tokens, "ppo_clip", {**CLIP, "aggregation": "token-mean"})
    assert loss == pytest.approx(-(1.0 + 6.0) / 2)
    assert gradient == pytest.approx([-0.5, -3.0])
    with pytest.raises(ValueError, match="positive"):
        truncated_importance_weights(weights, weights, Denominators(2, 1), cap=0.0)


def test_kl_estimators_and_their_gradients():
    logprobs = torch.tensor([math.log(0.5)], requires_grad=True)
    reference = torch.tensor([math.log(0.25)])
    difference = math.log(2.0)
    expected = {"k1": difference, "k2": difference**2 / 2, "k3": 0.5 - 1.0 + difference}
    slopes = {"k1": 1.0, "k2": difference, "k3": 0.5}
    for estimator in ("k1", "k2", "k3"):
        value = kl_per_token(logprobs, reference, estimator)
        assert value.item() == pytest.approx(expected[estimator])
        assert torch.autograd.grad(value, logprobs)[0].item() == pytest.approx(slopes[estimator])
    with pytest.raises(ValueError, match="known: k1, k2, k3"):
        kl_per_token(logprobs, reference, "k4")  # pyright: ignore[reportArgumentType]


def test_kl_loss_is_the_weighted_aggregate():
    logprobs, reference = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-2.0, -1.0, -4.0])
    loss, metrics = kl_loss(
        logprobs,
        reference,
        torch.tensor([0, 0, 1]),
        Denominators(3, 2),
        estimator="k1",
        coefficient=0.1,
        aggregation="seq-mean-token-sum",
    )
    assert loss.item() == pytest.approx(0.1 * (1.0 + 3.0) / 2)
    assert metrics["reference_kl"].item() == pytest.approx(4.0 / 3)


def test_entropy_and_its_bonus():
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0], [math.log(3.0), 0.0]], requires_grad=True)
    entropies = score_tokens(logits, torch.zeros(3, dtype=torch.long), 1.0, entropy_gradient=True)[
        "entropies"
    ]
    skewed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropies.tolist() == pytest.approx([math.log(2.0), 0.0, skewed], abs=1e-6)
    bonus, metrics = entropy_bonus(
        entropies, torch.tensor([0, 0, 0]), Denominators(3, 1), coefficient=0.3, aggregation="token-mean"
    )
    assert bonus.item() == pytest.approx(-0.1 * (math.log(2.0) + skewed))
    assert metrics["entropy"].item() == pytest.approx((math.log(2.0) + skewed) / 3)
    assert torch.isfinite(torch.autograd.grad(bonus, logits)[0]).all()


def test_a_loss_of_ones_own_and_unknown_names():
    def reinforce(tokens: LossTokens, denominators: Denominators, *, scale: float):
        return -scale * (tokens.advantages * tokens.logprobs).sum() / denominators.num_loss_tokens, {}

    register_policy_loss("reinforce_for_this_test", reinforce)
    tokens = make_tokens([1.0, 1.0], [1.0, 3.0], [0, 0])
    loss, _ = policy_loss(tokens, "reinforce_for_this_test", {"scale": 2.0, "clip_low": 0.2})
    assert loss.item() == pytest.approx(4.0)
    with pytest.raises(ValueError, match="exists already"):
        register_policy_loss("gspo", reinforce)
    with pytest.raises(ValueError, match="known: gspo, ppo_clip"):
        policy_loss(tokens, "trpo", {})

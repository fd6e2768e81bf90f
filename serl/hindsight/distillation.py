"""Distillation: the student is drawn to what the teacher, who has read the evidence, would rather do.

For an action token with prompt s and evidence c, teacher π_T and student π_θ:

    D = divergence of π_T(· | s, c) and π_θ(· | s), over the whole vocabulary
    g = 1, or σ(κ · Δ) with Δ = log π_T(a | s, c) − log π_S(a | s) of the sampled token a    the gate
    L = β · mean over the routed action tokens of g · D                                      added to the loss

The teacher's distribution has no gradient. Of a large vocabulary its K likeliest tokens are compared one by
one and all others as one token, which bounds D from below; with K tokens or fewer nothing is left out.

Self-distillation from hindsight: SDPO (arXiv 2601.20802; reverse KL, top-K and rest), gated: SDAR
(arXiv 2605.15155), failures only: SRPO (arXiv 2604.02288). The paper of SERL (arXiv 2605.19447) reweights
alone. Departures: only action tokens are distilled, Δ is to the sampler's log-probs, as in
`serl.hindsight.teacher_weights`, and both distributions are at the sampling temperature.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# torch does not say what `split` and `checkpoint` return.

from __future__ import annotations

import math
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from serl.config.distill import Divergence, Gate


class TopTokens(NamedTuple):
    """The K likeliest tokens of N distributions: ``ids`` [N, K] (int32), natural ``logprobs`` [N, K]."""

    ids: Tensor
    logprobs: Tensor


def top_tokens(logits: Tensor, k: int, temperature: float) -> TopTokens:
    """Those of ``logits`` [N, vocabulary] / T, ``k`` of them or the whole vocabulary; float32."""
    found = torch.log_softmax(logits.float() / temperature, dim=-1).topk(min(k, logits.shape[-1]))
    return TopTokens(found.indices.to(torch.int32), found.values)


def divergences(logits: Tensor, teacher: TopTokens, temperature: float, kind: Divergence) -> Tensor:
    """D of ``teacher`` [N, K] and the student's ``logits`` [N, vocabulary] / T, in nats, float32 [N]."""
    student = torch.log_softmax(logits.float() / temperature, dim=-1).gather(-1, teacher.ids.long())
    expected = teacher.logprobs.float()
    if teacher.ids.shape[-1] < logits.shape[-1]:
        student, expected = _with_rest(student), _with_rest(expected)
    match kind:
        case "forward_kl":
            return _kl(expected, student)
        case "reverse_kl":
            return _kl(student, expected)
        case "jsd":
            mixture = torch.logaddexp(expected, student) - math.log(2.0)
            return 0.5 * (_kl(expected, mixture) + _kl(student, mixture))
        case _:
            assert_never(kind)


def gates(log_ratios: Tensor, kind: Gate, sharpness: float) -> Tensor:
    """g of tokens whose Δ are ``log_ratios``, of any one shape: 1, or σ(sharpness · Δ)."""
    return torch.ones_like(log_ratios) if kind == "none" else torch.sigmoid(sharpness * log_ratios)


def distill_loss(
    own: Tensor, gates: Tensor, *, coefficient: float, num_tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """coefficient · Σ g · D / ``num_tokens``, a scalar, of divergences ``own`` [M] and ``gates`` [M].

    ``num_tokens`` counts the routed action tokens of the whole minibatch, on all learners, so that the losses
    of its micro-batches add up. Metrics, detached sums over the M tokens: ``distill_divergence``,
    ``distill_gate``.
    """
    loss = coefficient * (gates * own).sum() / max(num_tokens, 1)
    return loss, {"distill_divergence": own.detach().sum(), "distill_gate": gates.sum()}


def _with_rest(logprobs: Tensor) -> Tensor:
    """``logprobs`` [N, K] and log(1 − Σ p) as one token more, [N, K + 1]."""
    # In float32 the K may add up to 1; the rest then counts as what rounding may have hidden.
    total = logprobs.logsumexp(dim=-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logprobs, torch.log(-torch.expm1(total))], dim=-1)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second) of natural log-probs [N, K], [N]."""
    return (first.exp() * (first - second)).sum(dim=-1)

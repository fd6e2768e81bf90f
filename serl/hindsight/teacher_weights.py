"""Teacher weights: the hindsight teacher's opinion of each action token, as a factor on its advantage.

SERL (arXiv 2605.19447). For a token a of a step with context c, teacher π_T and student π_S:

    Δ = log π_T(a | c) − log π_S(a)
    w = exp(sign(A) · Δ),  the exponent clamped to ±20, sign(0) = 0
    c = clip(w, 1 − weight_clip, 1 + weight_clip)
    A' = A · ((1 − λ) + λ · c)  on selected tokens, A elsewhere

The sign of A stays: a weight makes an update stronger or weaker and never turns it round.

Departures from the paper, all off unless asked for:
- ``baseline="teacher"`` measures Δ against the same teacher without the context. That leaves what the context
  says and removes how far student and teacher have drifted apart.
- ``center`` subtracts the mean Δ of the selected tokens (of the batch, or of each step).
- ``shuffle`` moves every weight to another selected token: a control with equal weights, all misplaced.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["student", "teacher"]
Center = Literal["none", "batch", "step"]

_MAX_LOG_WEIGHT = 20.0


def teacher_weights(
    advantages: Tensor,
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    selected: Tensor,
    *,
    effective_lambda: float,
    weight_clip: float,
    baseline: Baseline = "student",
    teacher_logprobs_without_context: Tensor | None = None,
    center: Center = "none",
    step_ids: Tensor | None = None,
    shuffle: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Advantages with teacher weights mixed in, and what the weights were.

    All tensors have the same shape, [tokens] or [rows, tokens]. ``selected`` is the product of response mask,
    context mask and action mask; whatever the log-probs are elsewhere, they are not read. ``step_ids`` (long,
    0 … steps − 1) says which step a token belongs to and is needed for ``center="step"``;
    ``teacher_logprobs_without_context`` for ``baseline="teacher"``. ``weight_clip`` 0 makes every weight 1.

    Returns the new advantages and metrics over the selected tokens of this call. Means are to be averaged
    over calls with ``num_selected_tokens`` (or the positive/negative share of it) as weights:
    ``weight_mean``, ``clipped_fraction`` (weights on either bound), both also as ``positive_…`` and
    ``negative_…`` for tokens with A > 0 and A < 0, with ``…_weight_min`` and ``…_weight_max``;
    ``delta_mean`` and ``abs_delta_mean`` of Δ before centring; with the baseline log-probs given, also its
    two parts: ``context_delta_mean`` = log π_T(a | c) − log π_T(a) and ``drift_delta_mean`` = log π_T(a) −
    log π_S(a). Where no token is selected, a weight is 1 and all else 0. Raises ValueError for a missing
    companion tensor.
    """
    mask = selected.bool()
    bases = {"student": student_logprobs, "teacher": teacher_logprobs_without_context}
    base = bases.get(baseline)
    if base is None:
        known = "known: student, or teacher with teacher_logprobs_without_context"
        raise ValueError(f"no log-probs for baseline {baseline!r}; {known}")
    token_advantages = advantages[mask]
    delta = _log_ratio(teacher_logprobs, base, mask)
    steps = None if step_ids is None else step_ids[mask]
    log_weights = torch.sign(token_advantages) * _centered(delta, center, steps)
    weights = log_weights.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT).exp()
    weights = weights.clamp(1.0 - weight_clip, 1.0 + weight_clip)
    if shuffle is not None:
        weights = _moved(weights, shuffle)

    mixed = advantages.clone()
    mixed[mask] = token_advantages * ((1.0 - effective_lambda) + effective_lambda * weights)
    metrics = _weight_metrics(weights, token_advantages, weight_clip)
    metrics.update(delta_mean=_mean(delta), abs_delta_mean=_mean(delta.abs()))
    if teacher_logprobs_without_context is not None:
        context = _log_ratio(teacher_logprobs, teacher_logprobs_without_context, mask)
        drift = _log_ratio(teacher_logprobs_without_context, student_logprobs, mask)
        metrics.update(context_delta_mean=_mean(context), drift_delta_mean=_mean(drift))
    return mixed, metrics


def _log_ratio(numerator: Tensor, denominator: Tensor, mask: Tensor) -> Tensor:
    return (numerator[mask] - denominator[mask]).clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)


def _centered(delta: Tensor, center: Center, step_ids: Tensor | None) -> Tensor:
    if center == "none" or delta.numel() == 0:
        return delta
    if center == "batch":
        return delta - delta.mean()
    if center != "step":
        raise ValueError(f"unknown center {center!r}; known: none, batch, step")
    if step_ids is None:
        raise ValueError("center 'step' needs step_ids")
    num_steps = int(step_ids.max()) + 1
    totals = delta.new_zeros(num_steps).index_add(0, step_ids, delta)
    counts = delta.new_zeros(num_steps).index_add(0, step_ids, torch.ones_like(delta))
    return delta - (totals / counts.clamp(min=1.0))[step_ids]


def _moved(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Every weight on another token: one random cycle through all of them."""
    order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
    moved = torch.empty_like(weights)
    moved[order] = weights[order.roll(1)]
    return moved


def _weight_metrics(weights: Tensor, advantages: Tensor, weight_clip: float) -> dict[str, float]:
    clipped = ((weights <= 1.0 - weight_clip) | (weights >= 1.0 + weight_clip)).float()
    metrics = {
        "weight_mean": _mean(weights, empty=1.0),
        "clipped_fraction": _mean(clipped),
        "num_selected_tokens": float(weights.numel()),
    }
    for sign, tokens in (("positive", advantages > 0), ("negative", advantages < 0)):
        share = weights[tokens]
        metrics[f"{sign}_num_selected_tokens"] = float(share.numel())
        metrics[f"{sign}_weight_mean"] = _mean(share, empty=1.0)
        metrics[f"{sign}_weight_min"] = float(share.min()) if share.numel() else 1.0
        metrics[f"{sign}_weight_max"] = float(share.max()) if share.numel() else 1.0
        metrics[f"{sign}_clipped_fraction"] = _mean(clipped[tokens])
    return metrics


def _mean(values: Tensor, empty: float = 0.0) -> float:
    return float(values.mean()) if values.numel() else empty

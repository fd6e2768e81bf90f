"""Teacher weights: the hindsight teacher's opinion of each action token, as a factor on its advantage.

SERL (arXiv 2605.19447). For a token a of a step with prompt s, context c and advantage A, teacher π_T and
student π_S:

    Δ  = log π_T(a | s, c) − log π_S(a | s)      the log-ratio, clamped to ±20
    w  = exp(sign(A) · Δ)                        the exponent clamped to ±20, sign(0) = 0
    ŵ  = clip(w, 1 − weight_clip, 1 + weight_clip)
    A' = A · ((1 − λ) + λ · ŵ)                   on selected tokens, A elsewhere

The sign of A stays: a weight makes an update stronger or weaker and never turns it round.

Departures from the paper, all off unless asked for:
- ``baseline="teacher"`` takes log π_T(a | s), the teacher's without the context, in place of the student's.
  Δ is then the context effect alone, without the teacher–student log-ratio that is there without context.
- ``center`` subtracts the mean Δ of the selected tokens (of the batch, or of each step).
- ``shuffle`` moves every weight to another selected token: a control with equal weights, all misplaced.
- `action_weights` takes, in place of the log-ratio, the probability p that the teacher gives a step's whole
  action, and weighs all tokens of the step with it: a policy that thinks first decides in its thoughts.

    p  = Π π_T(a | s, c) over the step's action tokens
    ŵ  = 1 + weight_clip · sign(A) · (2 p − 1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["student", "teacher"]
Center = Literal["none", "batch", "step"]
# From values [n] to those of the whole batch, [N], and where in them one's own begin.
Gather = Callable[[Tensor], tuple[Tensor, int]]

_MAX_LOG_WEIGHT = 20.0


def whole_batch(values: Tensor) -> tuple[Tensor, int]:
    """The `Gather` of a batch that is not split over learners."""
    return values, 0


def teacher_weights(
    advantages: Tensor,
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    selected: Tensor,
    *,
    weight_clip: float,
    baseline: Baseline = "student",
    teacher_logprobs_without_context: Tensor | None = None,
    center: Center = "none",
    step_ids: Tensor | None = None,
    shuffle: torch.Generator | None = None,
    gather: Gather = whole_batch,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped weight of every token, 1 where it is not selected, and what the weights are.

    All tensors have the same shape, [tokens] or [rows, tokens]. ``selected`` is the product of response mask,
    context mask and action mask; whatever the log-probs are elsewhere, they are not read. ``step_ids`` (long,
    0 … steps − 1) says which step a token belongs to and is needed for ``center="step"``;
    ``teacher_logprobs_without_context`` for ``baseline="teacher"``. ``weight_clip`` 0 makes every weight 1.
    Where this is a part of a batch, ``gather`` brings the batch together for ``center="batch"`` and
    ``shuffle``; every part must then have a generator in the same state.

    The metrics are over the selected tokens of this call. Means are to be averaged over calls with
    ``num_selected_tokens`` (or the positive/negative share of it) as weights: ``weight_mean``,
    ``clipped_fraction`` (weights on either bound), both also as ``positive_…`` and ``negative_…`` for tokens
    with A > 0 and A < 0, with ``…_weight_min`` and ``…_weight_max``; ``log_ratio_mean`` and
    ``abs_log_ratio_mean`` in nats, before centring. Where no token is selected, a weight is 1 and all else 0.
    Raises ValueError for a missing companion tensor.
    """
    mask = selected.bool()
    bases = {"student": student_logprobs, "teacher": teacher_logprobs_without_context}
    base = bases.get(baseline)
    if base is None:
        known = "known: student, or teacher with teacher_logprobs_without_context"
        raise ValueError(f"no log-probs for baseline {baseline!r}; {known}")
    token_advantages = advantages[mask]
    log_ratios = log_ratio(teacher_logprobs, base)[mask]
    steps = None if step_ids is None else step_ids[mask]
    log_weights = torch.sign(token_advantages) * _centered(log_ratios, center, steps, gather)
    chosen = log_weights.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT).exp()
    chosen = chosen.clamp(1.0 - weight_clip, 1.0 + weight_clip)
    if shuffle is not None:
        chosen = _moved(chosen, shuffle, gather)

    weights = torch.ones_like(advantages)
    weights[mask] = chosen
    metrics = _weight_metrics(chosen, token_advantages, weight_clip)
    metrics.update(log_ratio_mean=_mean(log_ratios), abs_log_ratio_mean=_mean(log_ratios.abs()))
    return weights, metrics


def action_weights(
    advantages: Tensor,
    teacher_logprobs: Tensor,
    selected: Tensor,
    step_ids: Tensor,
    *,
    weight_clip: float,
) -> tuple[Tensor, dict[str, float]]:
    """The weight of every token by the probability of its step's action, 1 where a step has none selected.

    All tensors are [tokens]; ``selected``, ``step_ids`` and ``weight_clip`` are those of `teacher_weights`. A
    step's selected tokens are its action, and all of its tokens get its weight; where A is 0 it is 1.

    The metrics are those of `teacher_weights`, over the tokens that are weighed, without the log-ratio's, and
    ``action_probability_mean``.
    """
    logprobs = _summed_by_step(torch.where(selected.bool(), teacher_logprobs, 0.0), step_ids)
    has_action = _summed_by_step(selected.to(logprobs.dtype), step_ids) > 0
    mask = has_action[step_ids] & (advantages != 0.0)
    probabilities = logprobs.clamp(max=0.0).exp()[step_ids][mask]
    weights = torch.ones_like(advantages)
    weights[mask] += weight_clip * torch.sign(advantages[mask]) * (2.0 * probabilities - 1.0)
    metrics = _weight_metrics(weights[mask], advantages[mask], weight_clip)
    return weights, metrics | {"action_probability_mean": _mean(probabilities)}


def weighted_advantages(advantages: Tensor, weights: Tensor, effective_lambda: float) -> Tensor:
    """A · ((1 − λ) + λ · ŵ), of any one shape; where a weight is 1, exactly A."""
    mixed = advantages * ((1.0 - effective_lambda) + effective_lambda * weights)
    return torch.where(weights == 1.0, advantages, mixed)


def log_ratio(logprobs: Tensor, baseline_logprobs: Tensor) -> Tensor:
    """``logprobs − baseline_logprobs`` in nats, clamped to ±20."""
    return (logprobs - baseline_logprobs).clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)


def log_ratio_parts(
    student_logprobs: Tensor, teacher_logprobs: Tensor, teacher_logprobs_without_context: Tensor
) -> tuple[Tensor, Tensor]:
    """The two parts of the log-ratio log π_T(a | s, c) − log π_S(a | s), in nats, of any one shape.

    First the context effect, log π_T(a | s, c) − log π_T(a | s): what the context says. Then the
    teacher–student log-ratio without context, log π_T(a | s) − log π_S(a | s): how far the two are apart.
    """
    return (
        log_ratio(teacher_logprobs, teacher_logprobs_without_context),
        log_ratio(teacher_logprobs_without_context, student_logprobs),
    )


def _centered(log_ratios: Tensor, center: Center, step_ids: Tensor | None, gather: Gather) -> Tensor:
    if center == "none":
        return log_ratios
    if center == "batch":
        # In float64 the mean does not depend on how the batch is split.
        everywhere = gather(log_ratios)[0].double()
        mean = everywhere.mean().to(log_ratios.dtype) if everywhere.numel() else 0.0
        return log_ratios - mean
    if center != "step":
        raise ValueError(f"unknown center {center!r}; known: none, batch, step")
    if step_ids is None:
        raise ValueError("center 'step' needs step_ids")
    totals = _summed_by_step(log_ratios, step_ids)
    counts = _summed_by_step(torch.ones_like(log_ratios), step_ids)
    return log_ratios - (totals / counts.clamp(min=1.0))[step_ids]


def _summed_by_step(values: Tensor, step_ids: Tensor) -> Tensor:
    num_steps = int(step_ids.max()) + 1 if step_ids.numel() else 0
    return values.new_zeros(num_steps).index_add(0, step_ids, values)


def _moved(weights: Tensor, generator: torch.Generator, gather: Gather) -> Tensor:
    """Every weight on another token: one random cycle through all selected tokens of the batch."""
    everywhere, start = gather(weights)
    order = torch.randperm(everywhere.numel(), generator=generator).to(weights.device)
    moved = torch.empty_like(everywhere)
    moved[order] = everywhere[order.roll(1)]
    return moved[start : start + weights.numel()]


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

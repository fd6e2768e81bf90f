"""PPO's clipped surrogate on tokens (arXiv 1707.06347) with dual clip (arXiv 1912.09729)."""

from __future__ import annotations

import torch
from torch import Tensor

from serl.learner.losses.aggregation import (
    Aggregation,
    Denominators,
    LossTokens,
    aggregate,
    token_mean,
    weighted,
)

# exp(20) is beyond every clip range, so the bound changes no gradient; it keeps exp finite.
_MAX_LOG_RATIO = 20.0


def ppo_clip(
    tokens: LossTokens,
    denominators: Denominators,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    aggregation: Aggregation,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = aggregate(max(−A·ρ, −A·clip(ρ, 1 − clip_low, 1 + clip_high))), ρ = exp(logprobs − old_logprobs).

    Where A < 0 the loss of a token is at most −A·dual_clip; ``dual_clip`` 0 turns that off.

    Returns the scalar and detached metrics, each a token sum over the batch's loss tokens, so that those of
    the parts add up: ``clip_fraction`` (clipped loss > unclipped loss), ``dual_clip_fraction``,
    ``ratio_mean`` and ``approx_kl`` = ρ − 1 − log ρ, an estimate of KL(old ‖ new).
    """
    log_ratio = (tokens.logprobs - tokens.old_logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = -tokens.advantages * ratio
    clipped = -tokens.advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    losses = torch.maximum(unclipped, clipped)
    dual_clipped = torch.zeros_like(losses, dtype=torch.bool)
    if dual_clip > 0.0:
        bound = -tokens.advantages * dual_clip
        dual_clipped = (tokens.advantages < 0) & (losses > bound)
        losses = torch.where(dual_clipped, bound, losses)
    loss = aggregate(weighted(losses, tokens), tokens.row_ids, aggregation, denominators)
    with torch.no_grad():
        metrics = {
            "clip_fraction": token_mean((clipped > unclipped).float(), denominators),
            "dual_clip_fraction": token_mean(dual_clipped.float(), denominators),
            "ratio_mean": token_mean(ratio, denominators),
            "approx_kl": token_mean(ratio - 1.0 - log_ratio, denominators),
        }
    return loss, metrics

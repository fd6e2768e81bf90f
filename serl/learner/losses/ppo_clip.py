"""PPO's clipped surrogate on tokens (arXiv 1707.06347) with dual clip (arXiv 1912.09729)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from serl.learner.losses import LossTokens, register_policy_loss

# exp(20) is beyond every clip range, so the bound changes no gradient; it keeps exp finite.
_MAX_LOG_RATIO = 20.0


def _bound_on_ratio(dual_clip: float) -> float:
    if 0.0 < dual_clip <= 1.0:
        raise ValueError(
            "must be greater than 1, a bound on the ratio of new to old probability where the advantage is "
            "negative, or 0 for no such bound"
        )
    return dual_clip


@register_policy_loss("ppo_clip")
def ppo_clip(
    tokens: LossTokens,
    *,
    clip_low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2,
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2,
    dual_clip: Annotated[float, Field(ge=0.0), AfterValidator(_bound_on_ratio)] = 3.0,
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
    metrics = {
        "clip_fraction": tokens.token_mean((clipped > unclipped).float()),
        "dual_clip_fraction": tokens.token_mean(dual_clipped.float()),
        "ratio_mean": tokens.token_mean(ratio),
        "approx_kl": tokens.token_mean(ratio - 1.0 - log_ratio),
    }
    return tokens.aggregate(losses), metrics

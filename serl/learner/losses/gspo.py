"""GSPO: one importance ratio per response (arXiv 2507.18071), in the form of its eq. 14 (GSPO-token)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from serl.learner.losses import LossTokens, register_policy_loss

_MAX_LOG_RATIO = 10.0


@register_policy_loss("gspo", aggregation="seq-mean-token-mean")
def gspo(
    tokens: LossTokens,
    *,
    clip_low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2,
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = mean over rows of the token mean of max(−A·s, −A·clip(s, 1 − clip_low, 1 + clip_high)).

    log s = sg[mean over the response of (logprobs − old_logprobs)] + logprobs − sg[logprobs], at most 10:
    the value of s is that of the response, its gradient goes through the token's own log-prob (sg: no
    gradient).

    Returns the scalar and detached metrics as `ppo_clip` does: ``clip_fraction``, ``ratio_mean``,
    ``approx_kl``.
    """
    log_ratio = (tokens.logprobs - tokens.old_logprobs).detach()
    token_part = tokens.logprobs - tokens.logprobs.detach()
    log_s = (token_part + tokens.row_mean(log_ratio)).clamp(max=_MAX_LOG_RATIO)
    s = log_s.exp()
    unclipped = -tokens.advantages * s
    clipped = -tokens.advantages * s.clamp(1.0 - clip_low, 1.0 + clip_high)
    metrics = {
        "clip_fraction": tokens.token_mean((clipped > unclipped).float()),
        "ratio_mean": tokens.token_mean(s),
        "approx_kl": tokens.token_mean(s - 1.0 - log_s),
    }
    return tokens.aggregate(torch.maximum(unclipped, clipped)), metrics

"""GSPO: one importance ratio per response (arXiv 2507.18071), in the form of its eq. 14 (GSPO-token)."""

from __future__ import annotations

import torch
from torch import Tensor

from serl.learner.losses.aggregation import (
    Denominators,
    LossTokens,
    aggregate,
    row_means,
    token_mean,
    weighted,
)

_MAX_LOG_RATIO = 10.0


def gspo(
    tokens: LossTokens, denominators: Denominators, *, clip_low: float, clip_high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = mean over sequences of the token mean of max(−A·s, −A·clip(s, 1 − clip_low, 1 + clip_high)).

    log s = sg[mean over the response of (logprobs − old_logprobs)] + logprobs − sg[logprobs], at most 10:
    the value of s is that of the sequence, its gradient goes through the token's own log-prob (sg: no
    gradient).

    Returns the scalar and detached metrics as `ppo_clip` does: ``clip_fraction``, ``ratio_mean``,
    ``approx_kl``.
    """
    log_ratio = tokens.logprobs - tokens.old_logprobs
    log_sequence_ratio = row_means(log_ratio.detach(), tokens.row_ids)[tokens.row_ids]
    log_s = (tokens.logprobs - tokens.logprobs.detach() + log_sequence_ratio).clamp(max=_MAX_LOG_RATIO)
    s = log_s.exp()
    unclipped = -tokens.advantages * s
    clipped = -tokens.advantages * s.clamp(1.0 - clip_low, 1.0 + clip_high)
    losses = torch.maximum(unclipped, clipped)
    loss = aggregate(weighted(losses, tokens), tokens.row_ids, "seq-mean-token-mean", denominators)
    with torch.no_grad():
        metrics = {
            "clip_fraction": token_mean((clipped > unclipped).float(), denominators),
            "ratio_mean": token_mean(s, denominators),
            "approx_kl": token_mean(s - 1.0 - log_s, denominators),
        }
    return loss, metrics

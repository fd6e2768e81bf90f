"""Truncated importance weights for tokens that older weights, or another engine, sampled.

The loss's ratio is taken to ``old_logprobs``, the learner's policy before its update; what sampled the
token was a behaviour policy some updates older. The gap between the two is corrected by a bounded weight,
as in V-trace's ρ̄ (IMPALA, arXiv 1802.01561), decoupled PPO (arXiv 2110.00641) and AReaL (arXiv
2505.24298).
"""

from __future__ import annotations

import torch
from torch import Tensor

from serl.learner.loss_terms.aggregation import Denominators, token_mean


@torch.no_grad()
def truncated_importance_weights(
    old_logprobs: Tensor, behaviour_logprobs: Tensor, denominators: Denominators, *, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """min(cap, exp(old_logprobs − behaviour_logprobs)), [T], without gradient.

    Metrics are token means that add up over the parts of a batch: ``importance_weight_mean``,
    ``importance_capped_fraction`` and ``behaviour_kl`` = −log ratio, an estimate of KL(behaviour ‖ old).
    Raises ValueError unless ``cap`` is positive.
    """
    if cap <= 0.0:
        raise ValueError(f"the cap of importance weights must be positive, got {cap}")
    log_ratio = old_logprobs - behaviour_logprobs
    ratio = log_ratio.exp()
    weights = ratio.clamp(max=cap)
    return weights, {
        "importance_weight_mean": token_mean(weights, denominators),
        "importance_capped_fraction": token_mean((ratio > cap).float(), denominators),
        "behaviour_kl": token_mean(-log_ratio, denominators),
    }

"""KL to a frozen reference policy, from the log-probs of sampled tokens.

Estimators k1, k2, k3 of KL(policy ‖ reference) by J. Schulman, "Approximating KL Divergence" (2020).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from serl.learner.losses.aggregation import Aggregation, Denominators, aggregate, token_mean

KLEstimator = Literal["k1", "k2", "k3"]
_MAX_LOG_RATIO = 20.0


def kl_per_token(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """With d = log π − log π_ref (clamped to ±20), [T]: k1 = d, k2 = d² / 2, k3 = exp(−d) − 1 + d.

    k1 and k3 are unbiased as values, k3 is never negative (GRPO's choice, arXiv 2402.03300); as a loss, k2
    has the unbiased gradient and that of k1 is zero in expectation. Raises ValueError for another name.
    """
    difference = (logprobs - reference_logprobs.detach()).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        return torch.exp(-difference) - 1.0 + difference
    raise ValueError(f"unknown KL estimator {estimator!r}; known: k1, k2, k3")


def kl_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    row_ids: Tensor,
    denominators: Denominators,
    *,
    estimator: KLEstimator,
    coefficient: float,
    aggregation: Aggregation,
) -> tuple[Tensor, dict[str, Tensor]]:
    """coefficient · aggregate(KL per token), for the policy loss; metric ``reference_kl`` (token mean)."""
    per_token = kl_per_token(logprobs, reference_logprobs, estimator)
    loss = coefficient * aggregate(per_token, row_ids, aggregation, denominators)
    return loss, {"reference_kl": token_mean(per_token.detach(), denominators)}

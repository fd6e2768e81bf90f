"""KL to a frozen reference policy, from the log-probs of sampled tokens.

Estimators k1, k2, k3 of KL(policy ‖ reference) by J. Schulman, "Approximating KL Divergence" (2020).
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from serl.config import KLEstimator
from serl.learner.loss_terms.aggregation import LossTokens

_MAX_LOG_RATIO = 20.0


def kl_per_token(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """With d = log π − log π_ref (clamped to ±20), [T]: k1 = d, k2 = d² / 2, k3 = exp(−d) − 1 + d.

    k1 and k3 are unbiased as values, k3 is never negative (GRPO's choice, arXiv 2402.03300); as a loss, k2
    has the unbiased gradient and that of k1 is zero in expectation.
    """
    difference = (logprobs - reference_logprobs.detach()).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference**2
        case "k3":
            return torch.exp(-difference) - 1.0 + difference
        case _:
            assert_never(estimator)


def kl_loss(
    tokens: LossTokens, reference_logprobs: Tensor, *, coefficient: float, estimator: KLEstimator
) -> tuple[Tensor, dict[str, Tensor]]:
    """coefficient · aggregate(KL per token), for the policy loss; metric ``reference_kl`` (token mean).

    ``reference_logprobs`` [T] are those of the policy that the run began with.
    """
    per_token = kl_per_token(tokens.logprobs, reference_logprobs, estimator)
    loss = coefficient * tokens.aggregate_unweighted(per_token)
    return loss, {"reference_kl": tokens.token_mean(per_token)}

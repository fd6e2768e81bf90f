"""The bonus that rewards entropy of the policy's next-token distribution (A3C, arXiv 1602.01783)."""

from __future__ import annotations

from torch import Tensor

from serl.learner.loss_terms.aggregation import LossTokens


def entropy_bonus(
    tokens: LossTokens, entropies: Tensor, *, coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """−coefficient · aggregate(entropies), for the policy loss; metric ``entropy`` (token mean).

    ``entropies`` [T] in nats, with gradient.
    """
    bonus = -coefficient * tokens.aggregate_unweighted(entropies)
    return bonus, {"entropy": tokens.token_mean(entropies)}

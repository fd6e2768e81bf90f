"""The bonus that rewards entropy of the policy's next-token distribution (A3C, arXiv 1602.01783)."""

from __future__ import annotations

from torch import Tensor

from serl.learner.losses.aggregation import Aggregation, Denominators, aggregate, token_mean


def entropy_bonus(
    entropies: Tensor,
    row_ids: Tensor,
    denominators: Denominators,
    *,
    coefficient: float,
    aggregation: Aggregation,
) -> tuple[Tensor, dict[str, Tensor]]:
    """−coefficient · aggregate(entropies), for the policy loss; metric ``entropy`` (token mean).

    ``entropies`` [T] in nats, with gradient.
    """
    bonus = -coefficient * aggregate(entropies, row_ids, aggregation, denominators)
    return bonus, {"entropy": token_mean(entropies.detach(), denominators)}

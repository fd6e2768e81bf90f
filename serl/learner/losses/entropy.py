"""Entropy of the policy's next-token distribution, and the bonus that rewards it (A3C, arXiv 1602.01783)."""

from __future__ import annotations

import torch
from torch import Tensor

from serl.learner.losses.aggregation import Aggregation, Denominators, aggregate, token_mean


def token_entropies(logits: Tensor) -> Tensor:
    """−Σ p log p in nats, [T], from ``logits`` [T, vocabulary] that the temperature has already divided."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def entropy_bonus(
    entropies: Tensor,
    sequence_ids: Tensor,
    denominators: Denominators,
    *,
    coefficient: float,
    aggregation: Aggregation,
) -> tuple[Tensor, dict[str, Tensor]]:
    """−coefficient · aggregate(entropies), for the policy loss; metric ``entropy`` (token mean)."""
    bonus = -coefficient * aggregate(entropies, sequence_ids, aggregation, denominators)
    return bonus, {"entropy": token_mean(entropies.detach(), denominators)}

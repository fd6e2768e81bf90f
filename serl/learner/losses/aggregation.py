"""From losses per token to one scalar, so that the parts of a batch add up to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The response tokens of one micro-batch, packed one after another: T tokens of S sequences.

    ``logprobs`` [T] under the current policy, with gradient; ``old_logprobs`` [T]; ``advantages`` [T];
    ``row_ids`` [T] (long, 0 … S − 1). A sequence is never split over micro-batches.
    ``importance_weights`` [T], without gradient, multiply the loss of each token (see `importance`).
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    row_ids: Tensor
    importance_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Denominators:
    """What sums are divided by: the loss tokens and sequences of the whole batch, all shards together.

    With the same denominators everywhere, losses, gradients and metrics of the parts add up to the batch's
    mean. ``max_response_length`` is the constant of ``seq-mean-token-sum-norm``: tokens a response may have.
    """

    num_loss_tokens: float
    num_rows: float
    max_response_length: float | None = None

    @classmethod
    def of(cls, tokens: LossTokens) -> Denominators:
        """For a batch that consists of ``tokens`` alone."""
        return cls(tokens.row_ids.numel(), tokens.row_ids.unique().numel())


def token_mean(values: Tensor, denominators: Denominators) -> Tensor:
    """Σ values / (loss tokens of the whole batch); 0, still attached to the graph, without any token."""
    return values.sum() / max(denominators.num_loss_tokens, 1.0)


def row_means(values: Tensor, row_ids: Tensor) -> Tensor:
    """The mean of ``values`` [T] over each sequence's tokens, [S]; 0 for an id without tokens."""
    size = int(row_ids.max()) + 1 if row_ids.numel() else 0
    zeros = values.new_zeros(size)
    lengths = zeros.index_add(0, row_ids, torch.ones_like(values))
    return zeros.index_add(0, row_ids, values) / lengths.clamp(min=1.0)


def aggregate(
    values: Tensor, row_ids: Tensor, aggregation: Aggregation, denominators: Denominators
) -> Tensor:
    """One scalar from ``values`` [T]; raises ValueError for an unknown ``aggregation`` or a missing constant.

    ``token-mean``: every token weighs the same. ``seq-mean-token-sum``: mean over sequences of token sums
    sums. ``seq-mean-token-sum-norm``: the same over ``max_response_length`` (Dr.GRPO, arXiv 2503.20783), so
    that a response's length changes nothing. ``seq-mean-token-mean``: mean over sequences of token means
    (GRPO, arXiv 2402.03300).
    """
    if aggregation == "token-mean":
        return token_mean(values, denominators)
    if aggregation == "seq-mean-token-sum":
        return values.sum() / max(denominators.num_rows, 1.0)
    if aggregation == "seq-mean-token-mean":
        return row_means(values, row_ids).sum() / max(denominators.num_rows, 1.0)
    if aggregation == "seq-mean-token-sum-norm":
        if not denominators.max_response_length:
            raise ValueError("aggregation 'seq-mean-token-sum-norm' needs max_response_length")
        return values.sum() / max(denominators.num_rows, 1.0) / denominators.max_response_length
    raise ValueError(f"unknown aggregation {aggregation!r}; known: {', '.join(get_args(Aggregation))}")


def weighted(values: Tensor, tokens: LossTokens) -> Tensor:
    """``values`` [T] times the importance weights, if there are any."""
    return values if tokens.importance_weights is None else values * tokens.importance_weights

"""From losses per token to one scalar, so that the parts of a batch add up to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from serl.config import Aggregation


@dataclass(frozen=True, slots=True)
class Denominators:
    """What sums are divided by: the loss tokens and rows of the whole batch, all shards together.

    With the same denominators everywhere, losses, gradients and metrics of the parts add up to the batch's
    mean. ``max_response_length`` is the constant of ``seq-mean-token-sum-norm``: tokens a response may have.
    """

    num_loss_tokens: float
    num_rows: float
    max_response_length: float | None = None


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The response tokens of one micro-batch, packed one after another: T tokens of S rows.

    ``logprobs`` [T] under the current policy, with gradient; ``old_logprobs`` [T]; ``advantages`` [T];
    ``row_ids`` [T] (long, 0 … S − 1). A row is never split over micro-batches.
    ``importance_weights`` [T], without gradient, multiply the loss of each token (see `importance`).
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    row_ids: Tensor
    denominators: Denominators
    aggregation: Aggregation = "token-mean"
    importance_weights: Tensor | None = None

    def aggregate(self, losses: Tensor) -> Tensor:
        """One scalar from the loss of each token [T], importance weights applied.

        Raises ValueError where the aggregation needs a constant that the denominators lack.
        """
        if self.importance_weights is not None:
            losses = losses * self.importance_weights
        return self.aggregate_unweighted(losses)

    def aggregate_unweighted(self, values: Tensor) -> Tensor:
        """One scalar from ``values`` [T], as `aggregate` but without importance weights."""
        return aggregate(values, self.row_ids, self.aggregation, self.denominators)

    def token_mean(self, values: Tensor) -> Tensor:
        """A metric: the micro-batch's part of the mean of ``values`` [T] over the batch's loss tokens."""
        return token_mean(values.detach(), self.denominators)

    def row_mean(self, values: Tensor) -> Tensor:
        """For each token the mean of ``values`` [T] over the tokens of its row, [T]."""
        return row_means(values, self.row_ids)[self.row_ids]


def token_mean(values: Tensor, denominators: Denominators) -> Tensor:
    """Σ values / (loss tokens of the whole batch); 0, still attached to the graph, without any token."""
    return values.sum() / max(denominators.num_loss_tokens, 1.0)


def row_means(values: Tensor, row_ids: Tensor) -> Tensor:
    """The mean of ``values`` [T] over each row's tokens, [S]; 0 for an id without tokens."""
    size = int(row_ids.max()) + 1 if row_ids.numel() else 0
    zeros = values.new_zeros(size)
    lengths = zeros.index_add(0, row_ids, torch.ones_like(values))
    return zeros.index_add(0, row_ids, values) / lengths.clamp(min=1.0)


def aggregate(
    values: Tensor, row_ids: Tensor, aggregation: Aggregation, denominators: Denominators
) -> Tensor:
    """One scalar from ``values`` [T]; raises ValueError for a missing constant.

    ``token-mean``: every token weighs the same. ``seq-mean-token-sum``: mean over rows of token sums.
    ``seq-mean-token-sum-norm``: the same over ``max_response_length`` (Dr.GRPO, arXiv 2503.20783), so that a
    response's length changes nothing. ``seq-mean-token-mean``: mean over rows of token means (GRPO, arXiv
    2402.03300).
    """
    num_rows = max(denominators.num_rows, 1.0)
    match aggregation:
        case "token-mean":
            return token_mean(values, denominators)
        case "seq-mean-token-sum":
            return values.sum() / num_rows
        case "seq-mean-token-mean":
            return row_means(values, row_ids).sum() / num_rows
        case "seq-mean-token-sum-norm":
            if not denominators.max_response_length:
                raise ValueError("aggregation 'seq-mean-token-sum-norm' needs max_response_length")
            return values.sum() / num_rows / denominators.max_response_length
        case _:
            assert_never(aggregation)

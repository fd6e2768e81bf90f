"""Log-probs and entropies of sampled tokens from logits, in pieces of bounded size.

For a vocabulary of 150,000 every float32 copy of the logits of 1,000 tokens is 0.6 GB, and one forward and
backward pass would hold several. So a large input is scored piece by piece, and for a backward pass the
piece's distribution is made again instead of kept (checkpointing, arXiv 1604.06174).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from serl.hindsight.distillation import TopTokens

_MAX_PIECE_ELEMENTS = 2**25


class TokenScores(NamedTuple):
    """Natural ``logprobs`` of N tokens at the sampling temperature and ``entropies``, in nats; float32 [N].

    Where they were asked for: ``top``, the likeliest tokens of the N distributions, and ``divergences`` of
    the M compared ones, in nats, float32 [M]. A named tuple, not a dataclass: FSDP finds the tensors of a
    module's output in tuples.
    """

    logprobs: Tensor
    entropies: Tensor
    top: TopTokens | None = None
    divergences: Tensor | None = None


def score_tokens(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    entropy_gradient: bool = False,
    max_piece_elements: int = _MAX_PIECE_ELEMENTS,
) -> TokenScores:
    """Scores of ``targets`` [N] under ``logits`` [N, vocabulary] / T.

    Entropies, −Σ p log p in nats, have a gradient only with ``entropy_gradient``.
    """
    piece = max(1, max_piece_elements // logits.shape[-1])
    if len(targets) <= piece:
        return _score(logits, targets, temperature, entropy_gradient)
    scored: list[TokenScores] = []
    for own_logits, own_targets in zip(logits.split(piece), targets.split(piece), strict=True):
        arguments = own_logits, own_targets, temperature, entropy_gradient
        if torch.is_grad_enabled():
            scored.append(checkpoint(_score, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            scored.append(_score(*arguments))
    return TokenScores(
        torch.cat([piece.logprobs for piece in scored]), torch.cat([piece.entropies for piece in scored])
    )


def _score(logits: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool) -> TokenScores:
    distribution = torch.log_softmax(logits.float() / temperature, dim=-1)
    logprobs = -nn.functional.nll_loss(distribution, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = -(distribution.exp() * distribution).sum(dim=-1)
    return TokenScores(logprobs, entropies)

"""Log-probs and entropies of sampled tokens from logits, in pieces of bounded size.

For a vocabulary of 150,000 every float32 copy of the logits of 1,000 tokens is 0.6 GB, and one forward and
backward pass would hold several. So a large input is scored piece by piece, and for a backward pass the
piece's distribution is made again instead of kept (checkpointing, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    score = partial(_score, temperature=temperature, entropy_gradient=entropy_gradient)
    logprobs, entropies = in_pieces(score, logits, targets, max_piece_elements=max_piece_elements)
    return TokenScores(logprobs, entropies)


def in_pieces(
    function: Callable[..., tuple[Tensor, ...]],
    logits: Tensor,
    *others: Tensor,
    max_piece_elements: int = _MAX_PIECE_ELEMENTS,
) -> tuple[Tensor, ...]:
    """What ``function`` makes of ``logits`` [N, vocabulary] and ``others`` [N, …]: tensors [N, …]."""
    piece = max(1, max_piece_elements // logits.shape[-1])
    if len(logits) <= piece:
        return function(logits, *others)
    if torch.is_grad_enabled():
        function = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    parts = zip(*(tensor.split(piece) for tensor in (logits, *others)), strict=True)
    found = [function(*part) for part in parts]
    return tuple(torch.cat(own) for own in zip(*found, strict=True))


def _score(
    logits: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    distribution = torch.log_softmax(logits.float() / temperature, dim=-1)
    logprobs = -nn.functional.nll_loss(distribution, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = -(distribution.exp() * distribution).sum(dim=-1)
    return logprobs, entropies

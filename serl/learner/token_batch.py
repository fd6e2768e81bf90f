"""Sequences in one tensor, and which of their tokens are scored.

Two layouts, both exact. ``tree``: all sequences as one tree, what they begin with computed once. ``padded``,
for models that are more than attention to all tokens before: one row a sequence, filled up on the right;
attention is causal, so no real token ever sees a filler and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from serl.batch.rows import Array
from serl.config.distill import Divergence
from serl.hindsight.distillation import TopTokens
from serl.learner.token_tree import TokenTree

Layout = Literal["padded", "tree"]
Ids = Sequence[int] | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """R sequences and N of their tokens to score; all tensors are long.

    ``input_ids`` [R, longest] or, as a ``tree``, [1, tokens]; ``predictor_positions`` [N], where in the
    flattened input the hidden state is that predicts the token; ``targets`` [N], the tokens; ``row_ids`` [N],
    their sequences. ``predictors``, on the host, are the positions once each, ascending. ``top_k`` asks for
    the likeliest tokens of each distribution (0: none), ``comparison`` for divergences from a teacher's.
    """

    input_ids: Tensor
    predictor_positions: Tensor
    targets: Tensor
    row_ids: Tensor
    predictors: Array
    tree: TokenTree | None = None
    top_k: int = 0
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """M of the N scored tokens, at ``places`` [M] (long) in them, and the teacher's distributions there."""

    places: Tensor
    teacher: TopTokens
    divergence: Divergence


def make_token_batch(
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    scored: Sequence[Sequence[bool] | np.ndarray[Any, Any]] | None,
    *,
    layout: Layout,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """The input of `CausalLMModule` for ``prompts[i] + responses[i]``, i < R.

    ``scored`` marks the response tokens to score (None: all of them), N in total, in order. No prompt may be
    empty.
    """

    def on_device(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64, copy=False)).to(device)

    sequences = [
        np.concatenate((np.asarray(prompt, np.int64), np.asarray(response, np.int64)))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    tree = TokenTree.of(sequences) if layout == "tree" else None
    if tree is not None:
        input_ids, paths = tree.ids[None], tree.paths
    else:
        lengths = np.array([*map(len, sequences)])
        input_ids = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
        input_ids[np.arange(input_ids.shape[1])[None] < lengths[:, None]] = np.concatenate(sequences)
        paths = [row * input_ids.shape[1] + np.arange(length) for row, length in enumerate(lengths)]
    predictor_positions, targets, rows = [], [], []
    for row, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        num_responded = len(path) - len(prompt)
        offsets = np.arange(num_responded) if scored is None else np.flatnonzero(scored[row])
        predictor_positions.append(path[len(prompt) - 1 + offsets])
        targets.append(sequences[row][len(prompt) + offsets])
        rows.append(np.full(len(offsets), row))
    positions = np.concatenate(predictor_positions)
    return TokenBatch(
        input_ids=on_device(input_ids),
        predictor_positions=on_device(positions),
        targets=on_device(np.concatenate(targets)),
        row_ids=on_device(np.concatenate(rows)),
        predictors=np.unique(positions),
        tree=tree,
    )

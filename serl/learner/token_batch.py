"""Sequences side by side in one tensor, and which of their tokens are scored.

Two layouts, both exact. ``padded``: one row a sequence, filled up on the right; attention is causal, so no
real token ever sees a filler and no mask is needed. What all prompts begin with is computed once for the
whole micro-batch and leaves the rows. ``packed``: all sequences in one row, their borders given, for
attention kernels of variable length (flash attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from serl.config.distill import Divergence
from serl.hindsight.distillation import TopTokens

Layout = Literal["padded", "packed"]
Ids = Sequence[int] | np.ndarray[Any, Any]

# A shorter common beginning is not worth a forward pass of its own.
_MIN_SHARED_PREFIX = 16


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """R sequences and N of their tokens to score; all tensors are long.

    ``input_ids`` [R, longest] or, packed, [1, total]; ``predictor_positions`` [N], where in the flattened
    input the hidden state is that predicts the token; ``targets`` [N], the tokens; ``row_ids`` [N], their
    sequences. With a shared prefix ``prefix_ids`` [1, P] stands before every row of ``input_ids``. Packed,
    ``position_ids`` is [1, total] and ``sequence_starts`` [R + 1]. ``top_k`` asks for the likeliest tokens of
    each distribution (0: none), ``comparison`` for divergences from a teacher's.
    """

    input_ids: Tensor
    predictor_positions: Tensor
    targets: Tensor
    row_ids: Tensor
    prefix_ids: Tensor | None = None
    position_ids: Tensor | None = None
    sequence_starts: Tensor | None = None
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
    share_prefix: bool,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """The input of `CausalLMModule` for ``prompts[i] + responses[i]``, i < R.

    ``scored`` marks the response tokens to score (None: all of them), N in total, in order. No prompt may be
    empty.
    """

    def on_device(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64, copy=False)).to(device)

    prefix = shared_prefix(prompts) if share_prefix and layout == "padded" else 0
    lengths = np.array([len(prompt) - prefix for prompt in prompts]) + [len(own) for own in responses]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.concatenate(
        [
            np.asarray(ids, dtype=np.int64)
            for prompt, response in zip(prompts, responses, strict=True)
            for ids in (prompt[prefix:], response)
        ]
    )
    packed_fields: dict[str, Tensor] = {}
    if layout == "packed":
        row_starts, input_ids = starts[:-1], tokens[None]
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        packed_fields = {"position_ids": on_device(positions), "sequence_starts": on_device(starts)}
    else:
        input_ids = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
        input_ids[np.arange(input_ids.shape[1])[None] < lengths[:, None]] = tokens
        row_starts = np.arange(len(lengths)) * input_ids.shape[1]
    predictors, targets, rows = [], [], []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        offsets = np.arange(len(response)) if scored is None else np.flatnonzero(scored[row])
        predictors.append(row_starts[row] + len(prompt) - prefix - 1 + offsets)
        targets.append(np.asarray(response, dtype=np.int64)[offsets])
        rows.append(np.full(len(offsets), row))
    return TokenBatch(
        input_ids=on_device(input_ids),
        predictor_positions=on_device(np.concatenate(predictors)),
        targets=on_device(np.concatenate(targets)),
        row_ids=on_device(np.concatenate(rows)),
        prefix_ids=on_device(np.asarray(prompts[0][:prefix])[None]) if prefix else None,
        position_ids=packed_fields.get("position_ids"),
        sequence_starts=packed_fields.get("sequence_starts"),
    )


def shared_prefix(prompts: Sequence[Ids]) -> int:
    """With how many equal ids all ``prompts`` begin; 0 if that is too little to be worth sharing.

    The last id of every prompt is never shared: it predicts the response's first token.
    """
    if len(prompts) < 2:
        return 0
    common = min(len(prompt) for prompt in prompts) - 1
    first = np.asarray(prompts[0])
    for prompt in prompts[1:]:
        differs = first[:common] != np.asarray(prompt)[:common]
        common = int(differs.argmax()) if differs.any() else common
    return common if common >= _MIN_SHARED_PREFIX else 0

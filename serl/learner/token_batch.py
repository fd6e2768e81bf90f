"""Sequences side by side in one tensor, and which of their tokens are scored.

Two layouts, both exact. ``padded``: one row a sequence, filled up on the right; attention is causal, so no
real token ever sees a filler and no mask is needed. What all prompts begin with is computed once for the
whole micro-batch and leaves the rows. ``packed``: all sequences in one row, their borders given, for
attention kernels of variable length (flash attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Layout = Literal["padded", "packed"]
TokenBatch = dict[str, Tensor]

# A shorter common beginning is not worth a forward pass of its own.
_MIN_SHARED_PREFIX = 16


def make_token_batch(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    scored: Sequence[Sequence[bool]] | None,
    *,
    layout: Layout,
    share_prefix: bool,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """The input of `CausalLMModule` for ``prompts[i] + responses[i]``, i < R.

    ``scored`` marks the response tokens to score (None: all of them), N in total, in order.
    Returns long tensors: ``input_ids`` [R, longest] or [1, total]; ``predictor_positions`` [N], where in the
    flattened input the hidden state is that predicts the token; ``targets`` [N], the tokens;
    ``row_ids`` [N], their rows. With a shared prefix also ``prefix_ids`` [1, P]. Packed also
    ``position_ids`` [1, total] and ``sequence_starts`` [R + 1]. No prompt may be empty.
    """
    prefix = shared_prefix(prompts) if share_prefix and layout == "padded" else 0
    lengths = [
        len(prompt) + len(response) - prefix for prompt, response in zip(prompts, responses, strict=True)
    ]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.concatenate(
        [
            np.asarray(ids, dtype=np.int64)
            for prompt, response in zip(prompts, responses, strict=True)
            for ids in (prompt[prefix:], response)
        ]
    )
    batch: dict[str, np.ndarray] = {}
    if layout == "packed":
        row_starts = starts[:-1]
        batch["input_ids"] = tokens[None]
        batch["position_ids"] = np.concatenate([np.arange(length) for length in lengths])[None]
        batch["sequence_starts"] = starts
    else:
        padded = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        padded[np.arange(padded.shape[1])[None] < np.asarray(lengths)[:, None]] = tokens
        row_starts = np.arange(len(lengths)) * padded.shape[1]
        batch["input_ids"] = padded
        if prefix:
            batch["prefix_ids"] = np.asarray(prompts[0][:prefix], dtype=np.int64)[None]
    predictors, targets, rows = [], [], []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        offsets = np.arange(len(response)) if scored is None else np.flatnonzero(scored[row])
        predictors.append(row_starts[row] + len(prompt) - prefix - 1 + offsets)
        targets.append(np.asarray(response, dtype=np.int64)[offsets])
        rows.append(np.full(len(offsets), row))
    batch["predictor_positions"] = np.concatenate(predictors)
    batch["targets"] = np.concatenate(targets)
    batch["row_ids"] = np.concatenate(rows)
    return {
        name: torch.from_numpy(values.astype(np.int64, copy=False)).to(device)
        for name, values in batch.items()
    }


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """With how many equal ids all ``prompts`` begin; 0 if that is too little to be worth sharing.

    The last id of every prompt is never shared: it predicts the response's first token.
    """
    if len(prompts) < 2:
        return 0
    # The lexicographic extremes differ as early as any two do.
    lowest, highest = min(prompts), max(prompts)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lowest, highest, strict=False)))
    prefix = min(common, min(len(prompt) for prompt in prompts) - 1)
    return prefix if prefix >= _MIN_SHARED_PREFIX else 0

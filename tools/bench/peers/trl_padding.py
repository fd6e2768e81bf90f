"""What a user can do about the padding in TRL's forward passes from outside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Ids, attention mask and how many last positions are completions, to their log-probs and entropies.
Compute = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]


def without_padding(
    compute: Compute, ids: Tensor, mask: Tensor, num_completion: int, rows_at_once: int
) -> tuple[Tensor, Tensor | None]:
    """``compute`` for a few rows at a time, without what is padding in all of them and without blank rows.

    ids, mask: [R, prompt + completion], prompts padded on the left, completions on the right; a row of two
    tokens is blank. Returns log-probs and entropies [R, completion], 0 where nothing was computed.
    """
    parts = [
        _few_rows(compute, few_ids, few_mask, num_completion)
        for few_ids, few_mask in zip(ids.split(rows_at_once), mask.split(rows_at_once), strict=True)
    ]
    entropies = [few for _, few in parts if few is not None]
    return torch.cat([few for few, _ in parts]), torch.cat(entropies) if entropies else None


def _few_rows(
    compute: Compute, ids: Tensor, mask: Tensor, num_completion: int
) -> tuple[Tensor, Tensor | None]:
    rows = (mask.sum(dim=1) > 2).nonzero().flatten()
    if not len(rows):
        rows = torch.zeros(1, dtype=torch.long, device=ids.device)
    columns = mask[rows].any(dim=0).nonzero().flatten()
    begin, end = int(columns[0]), int(columns[-1]) + 1
    kept = end - (ids.shape[1] - num_completion)
    logps, entropies = compute(ids[rows, begin:end], mask[rows, begin:end], kept)

    def whole(few: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(few, (0, num_completion - kept))
        return few.new_zeros(len(ids), num_completion).index_copy(0, rows, padded)

    return whole(logps), None if entropies is None else whole(entropies)

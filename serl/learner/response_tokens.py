"""The response tokens of a learner's rows, one after another in flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from serl.batch.rows import Array, TrainingRows


@dataclass(frozen=True, slots=True)
class ResponseTokens:
    """T tokens of R rows. ``starts`` [R + 1] says where in the flat tensors each row's tokens are.

    ``old_logprobs`` [T] are the sampler's. ``advantages`` [T] repeat each row's advantage. ``selected``
    [T] marks action tokens of rows with a teacher prompt, ``distilled`` [T] those of distilled rows.
    ``on_policy`` [T] marks the tokens of rows that only the current weights sampled, after the row's prompt.
    """

    starts: Array
    old_logprobs: Tensor
    advantages: Tensor
    selected: Tensor
    distilled: Tensor
    on_policy: Tensor

    @classmethod
    def of(cls, rows: TrainingRows, weights_seq_no: int, device: torch.device | str = "cpu") -> Self:
        """The tokens of ``rows``, trained while ``weights_seq_no`` is the newest version."""
        lengths = rows.response_ids.lengths

        def repeated(values: Array) -> Tensor:
            return torch.from_numpy(np.repeat(values, lengths)).to(device)

        action = torch.from_numpy(rows.action_mask.values.copy()).to(device)
        return cls(
            starts=rows.response_ids.starts,
            old_logprobs=torch.from_numpy(rows.old_logprobs.values.copy()).to(device),
            advantages=repeated(rows.advantages),
            selected=action & repeated(rows.has_teacher_prompt),
            distilled=action & repeated(rows.distilled),
            on_policy=repeated((rows.weights_seq_nos >= weights_seq_no) & ~rows.hinted),
        )

    def indices(self, rows: Sequence[int]) -> Array:
        """Where the tokens of ``rows`` are in the flat tensors, in the order of ``rows``."""
        return np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])

    def positions(self, rows: Sequence[int]) -> Tensor:
        """`indices`, on the tokens' device."""
        return torch.from_numpy(self.indices(rows)).to(self.old_logprobs.device)

    @property
    def row_ids(self) -> Tensor:
        """The row of every token, [T] (long)."""
        return self.of_rows(torch.arange(len(self.starts) - 1))

    def of_rows(self, values: Tensor) -> Tensor:
        """``values`` [R], repeated for every token of their rows, [T]."""
        lengths = torch.from_numpy(np.diff(self.starts))
        return values.repeat_interleave(lengths).to(self.old_logprobs.device)

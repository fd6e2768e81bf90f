"""The response tokens of a learner's samples, one after another in flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
import torch
from torch import Tensor

from serl.types import TrainingRow


@dataclass(frozen=True, slots=True)
class ResponseTokens:
    """T tokens of R samples. ``starts`` [R + 1] says where in the flat tensors each sample's tokens are.

    ``old_logprobs`` [T] are the sampler's. ``advantages`` [T] repeat each sample's advantage. ``selected``
    [T] marks action tokens of samples with a teacher prompt. ``fresh`` [T] marks the tokens of samples that
    only the current weights sampled.
    """

    starts: np.ndarray
    old_logprobs: Tensor
    advantages: Tensor
    selected: Tensor
    fresh: Tensor

    @classmethod
    def of(
        cls, samples: Sequence[TrainingRow], weights_seq_no: int, device: torch.device | str = "cpu"
    ) -> Self:
        """The tokens of ``samples``, trained while ``weights_seq_no`` is the newest version."""
        lengths = np.asarray([len(sample.response_ids) for sample in samples], dtype=np.int64)

        def repeated(values: list[float] | list[bool], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(torch.from_numpy(lengths)).to(device)

        def flat(values: list[Sequence[float]] | list[Sequence[bool]], dtype: torch.dtype) -> Tensor:
            return torch.tensor(list(chain.from_iterable(values)), dtype=dtype).to(device)

        has_teacher = [sample.teacher_prompt_ids is not None for sample in samples]
        action = flat([sample.action_mask for sample in samples], torch.bool)
        return cls(
            starts=np.concatenate(([0], np.cumsum(lengths))),
            old_logprobs=flat([sample.old_logprobs for sample in samples], torch.float32),
            advantages=repeated([sample.advantage for sample in samples], torch.float32),
            selected=action & repeated(has_teacher, torch.bool),
            fresh=repeated([sample.weights_seq_no >= weights_seq_no for sample in samples], torch.bool),
        )

    def positions(self, rows: Sequence[int]) -> Tensor:
        """Where the tokens of ``rows`` are in the flat tensors, in the order of ``rows``."""
        spans = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows]
        return torch.from_numpy(np.concatenate(spans)).to(self.old_logprobs.device)

    @property
    def row_ids(self) -> Tensor:
        """The row of every token, [T] (long)."""
        return self.of_rows(torch.arange(len(self.starts) - 1))

    def of_rows(self, values: Tensor) -> Tensor:
        """``values`` [R], repeated for every token of their rows, [T]."""
        lengths = torch.from_numpy(np.diff(self.starts))
        return values.repeat_interleave(lengths).to(self.old_logprobs.device)

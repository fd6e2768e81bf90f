"""`TrainingRows`: the rows of a batch as columns, cheap to join, to cut and to send.

A batch of long episodes has millions of token ids. As Python lists they take seconds to pickle while nobody
polls the env runners; as a few arrays they are copied once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np

from serl.types import TrainingRow

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Ragged:
    """R lists of different lengths in one array: list i is ``values[starts[i]:starts[i + 1]]``."""

    values: Array
    starts: Array

    @classmethod
    def of(cls, lists: Sequence[Sequence[Any]] | Sequence[Array], dtype: Any) -> Self:
        lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        starts = np.concatenate(([0], np.cumsum(lengths)))
        values = np.fromiter(chain.from_iterable(lists), dtype=dtype, count=int(starts[-1]))
        return cls(values, starts)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Self:
        """The lists of all ``parts``, one part after another."""
        lengths = np.concatenate([part.lengths for part in parts])
        starts = np.concatenate(([0], np.cumsum(lengths)))
        return cls(np.concatenate([part.values for part in parts]), starts)

    @property
    def lengths(self) -> Array:
        """[R] (int64)."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Array:
        return self.values[self.starts[index] : self.starts[index + 1]]

    def take(self, indices: Sequence[int]) -> Ragged:
        """The lists at ``indices``, in that order; neighbours are copied together."""
        chosen = np.asarray(indices, dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(self.lengths[chosen])))
        begins_run = np.diff(chosen, prepend=-2) != 1
        ends_run = np.append(begins_run[1:], True)[: len(chosen)]
        begins = self.starts[chosen[begins_run]].tolist()
        ends = self.starts[chosen[ends_run] + 1].tolist()
        runs = (self.values[begin:end] for begin, end in zip(begins, ends, strict=True))
        return Ragged(np.concatenate([self.values[:0], *runs]), starts)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """R rows, of whole groups one after another; `row` shows one as a `TrainingRow`.

    Ragged: ``prompt_ids``, ``response_ids`` and ``teacher_prompt_ids`` (int32; empty without one),
    ``old_logprobs`` (float32), ``action_mask`` (bool). Arrays [R]: ``advantages`` (float32),
    ``weights_seq_nos`` (int64), ``distilled``, ``hinted`` and ``recorded`` (bool). ``contexts`` holds texts
    by row, in an assembled batch those of recorded rows only.
    """

    group_ids: list[str]
    trajectory_ids: list[str]
    step_indices: list[int]
    prompt_ids: Ragged
    response_ids: Ragged
    old_logprobs: Ragged
    action_mask: Ragged
    teacher_prompt_ids: Ragged
    advantages: Array
    weights_seq_nos: Array
    distilled: Array
    hinted: Array
    recorded: Array
    evidence_sources: list[tuple[str, ...]]
    contexts: dict[int, str]

    @classmethod
    def of(cls, rows: Sequence[TrainingRow]) -> Self:
        return cls(
            group_ids=[row.group_id for row in rows],
            trajectory_ids=[row.trajectory_id for row in rows],
            step_indices=[row.step_index for row in rows],
            prompt_ids=Ragged.of([row.prompt_ids for row in rows], np.int32),
            response_ids=Ragged.of([row.response_ids for row in rows], np.int32),
            old_logprobs=Ragged.of([row.old_logprobs for row in rows], np.float32),
            action_mask=Ragged.of([row.action_mask for row in rows], np.bool_),
            teacher_prompt_ids=Ragged.of([row.teacher_prompt_ids or [] for row in rows], np.int32),
            advantages=np.array([row.advantage for row in rows], dtype=np.float32),
            weights_seq_nos=np.array([row.weights_seq_no for row in rows], dtype=np.int64),
            distilled=np.array([row.distilled for row in rows], dtype=np.bool_),
            hinted=np.array([row.hinted for row in rows], dtype=np.bool_),
            recorded=np.array([row.recorded for row in rows], dtype=np.bool_),
            evidence_sources=[row.evidence_sources for row in rows],
            contexts={index: row.context for index, row in enumerate(rows) if row.context is not None},
        )

    @classmethod
    def joined(cls, parts: Sequence[TrainingRows]) -> Self:
        """The rows of all ``parts``, one part after another."""
        if not parts:
            return cls.of([])
        firsts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        return cls(
            group_ids=list(chain.from_iterable(part.group_ids for part in parts)),
            trajectory_ids=list(chain.from_iterable(part.trajectory_ids for part in parts)),
            step_indices=list(chain.from_iterable(part.step_indices for part in parts)),
            prompt_ids=Ragged.joined([part.prompt_ids for part in parts]),
            response_ids=Ragged.joined([part.response_ids for part in parts]),
            old_logprobs=Ragged.joined([part.old_logprobs for part in parts]),
            action_mask=Ragged.joined([part.action_mask for part in parts]),
            teacher_prompt_ids=Ragged.joined([part.teacher_prompt_ids for part in parts]),
            advantages=np.concatenate([part.advantages for part in parts]),
            weights_seq_nos=np.concatenate([part.weights_seq_nos for part in parts]),
            distilled=np.concatenate([part.distilled for part in parts]),
            hinted=np.concatenate([part.hinted for part in parts]),
            recorded=np.concatenate([part.recorded for part in parts]),
            evidence_sources=list(chain.from_iterable(part.evidence_sources for part in parts)),
            contexts={
                first + index: text
                for first, part in zip(firsts, parts, strict=False)
                for index, text in part.contexts.items()
            },
        )

    def __len__(self) -> int:
        return len(self.group_ids)

    def __iter__(self) -> Iterator[TrainingRow]:
        return (self.row(index) for index in range(len(self)))

    def take(self, indices: Sequence[int]) -> TrainingRows:
        """The rows at ``indices``, in that order."""
        chosen = list(indices)
        return TrainingRows(
            group_ids=[self.group_ids[index] for index in chosen],
            trajectory_ids=[self.trajectory_ids[index] for index in chosen],
            step_indices=[self.step_indices[index] for index in chosen],
            prompt_ids=self.prompt_ids.take(chosen),
            response_ids=self.response_ids.take(chosen),
            old_logprobs=self.old_logprobs.take(chosen),
            action_mask=self.action_mask.take(chosen),
            teacher_prompt_ids=self.teacher_prompt_ids.take(chosen),
            advantages=self.advantages[chosen],
            weights_seq_nos=self.weights_seq_nos[chosen],
            distilled=self.distilled[chosen],
            hinted=self.hinted[chosen],
            recorded=self.recorded[chosen],
            evidence_sources=[self.evidence_sources[index] for index in chosen],
            contexts={
                place: self.contexts[index] for place, index in enumerate(chosen) if index in self.contexts
            },
        )

    def row(self, index: int) -> TrainingRow:
        teacher_prompt_ids = self.teacher_prompt_ids[index].tolist()
        return TrainingRow(
            group_id=self.group_ids[index],
            trajectory_id=self.trajectory_ids[index],
            step_index=self.step_indices[index],
            prompt_ids=self.prompt_ids[index].tolist(),
            response_ids=self.response_ids[index].tolist(),
            old_logprobs=self.old_logprobs[index].tolist(),
            action_mask=self.action_mask[index].tolist(),
            advantage=float(self.advantages[index]),
            weights_seq_no=int(self.weights_seq_nos[index]),
            teacher_prompt_ids=teacher_prompt_ids or None,
            context=self.contexts.get(index),
            evidence_sources=self.evidence_sources[index],
            distilled=bool(self.distilled[index]),
            hinted=bool(self.hinted[index]),
            recorded=bool(self.recorded[index]),
        )

    @property
    def num_tokens(self) -> Array:
        """Prompt and response tokens, [R] (int64)."""
        return self.prompt_ids.lengths + self.response_ids.lengths

    @property
    def has_teacher_prompt(self) -> Array:
        """[R] (bool)."""
        return self.teacher_prompt_ids.lengths > 0

    @property
    def num_teacher_tokens(self) -> Array:
        """What the teacher reads to score each response, [R] (int64); 0 without a teacher prompt."""
        return np.where(
            self.has_teacher_prompt, self.teacher_prompt_ids.lengths + self.response_ids.lengths, 0
        )

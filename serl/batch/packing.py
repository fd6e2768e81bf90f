"""From a batch's rows to what every learner computes: shards, minibatches, micro-batches.

All of it is decided in one place, before anything is sent, from the whole batch. So every learner knows the
global denominators without asking the others, all of them make the same number of forward passes (FSDP2
needs that), and neither gradients nor minibatches depend on how many learners there are.

- Minibatches are random groups of the batch, drawn anew for each epoch from the seed. Rows of one group begin
  alike, and what they begin with is computed once.
- Each minibatch is cut along the tree of its rows (`serl.batch.prefix_tree`) into parts of equal work, one a
  learner: the shards. Where groups will meet others in later epochs, each group is cut so.
- A row with advantage 0 that is not distilled trains nothing, so nobody computes it; its tokens still count
  in the denominators, as they would if it were computed. A loss with terms of its own for such rows has them
  computed.
- Micro-batches are parts of such a tree within a token budget. For a model that cannot compute trees they
  hold rows of similar length, counted with padding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from serl.batch.prefix_tree import PrefixTree
from serl.batch.rows import Array, TrainingRows

MicroBatch = tuple[int, ...]
_Part = TypeVar("_Part")

# Training, a branch keeps a copy of the keys and values of what it grows from: about an eighth of what
# computing those tokens would keep.
_COPIES_OF_A_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Minibatch:
    """One optimizer step of one learner.

    A micro-batch lists indices into the learner's rows; an empty one keeps this learner in step with
    others that have more. ``num_loss_tokens`` and ``num_rows`` are the denominators: response tokens and
    rows of the minibatch over all learners, those that nobody computes included; ``num_trained_tokens``
    counts the response tokens of the others, ``num_distilled_tokens`` the action tokens of distilled rows.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_loss_tokens: int
    num_rows: int
    num_trained_tokens: int
    num_distilled_tokens: int


@dataclass(frozen=True, slots=True)
class TeacherMicroBatch:
    """Rows that the teacher scores in one pass, ``with_context`` and ``without_context``."""

    with_context: MicroBatch = ()
    without_context: MicroBatch = ()


@dataclass(frozen=True, slots=True)
class LearnerPlan:
    """One learner's part of one update: its trained rows, and the order of work.

    ``micro_batches`` hold every row once, ``teacher_micro_batches`` those that have a teacher prompt, and
    some of them without the context too.
    """

    rows: TrainingRows
    micro_batches: tuple[MicroBatch, ...]
    teacher_micro_batches: tuple[TeacherMicroBatch, ...]
    minibatches: tuple[Minibatch, ...]


def plan_update(
    rows: TrainingRows,
    *,
    num_learners: int,
    num_minibatches: int,
    num_epochs: int,
    micro_batch_tokens: int,
    seed: Sequence[int],
    train_every_row: bool = False,
    context_free_rows: Collection[int] = (),
    as_trees: bool = True,
) -> list[LearnerPlan]:
    """One plan per learner for a batch of ``rows``, those with advantage 0 included.

    ``seed`` (non-negative integers) alone decides the minibatches. Minibatches in which no row is trained
    are left out: rows are trained that have an advantage or are distilled, or all with ``train_every_row``.
    ``context_free_rows`` are indices of rows with a teacher prompt that the teacher scores without it too.
    ``as_trees``: whether the models compute what rows begin with once. Raises ValueError if ``num_learners``
    is not positive.
    """
    if num_learners < 1:
        raise ValueError(f"num_learners must be positive, got {num_learners}")
    packer = _Packer(rows, micro_batch_tokens, as_trees)
    epochs = [
        random_minibatches(rows.group_ids, num_minibatches, [*seed, epoch]) for epoch in range(num_epochs)
    ]
    stay_together = num_epochs == 1 or len(epochs[0]) == 1
    to_cut = epochs[0] if stay_together else random_minibatches(rows.group_ids, len(rows), seed)
    shards = packer.shards(to_cut, trained_rows(rows, train_every_row), num_learners)
    compared = np.zeros(len(rows), dtype=np.bool_)
    compared[list(context_free_rows)] = True
    every_row = _same_number([packer.for_scoring(shard) for shard in shards], ())
    of_teacher = _same_number([packer.for_teacher(shard, compared) for shard in shards], TeacherMicroBatch())
    minibatches = [
        parts
        for chosen in (minibatch for epoch in epochs for minibatch in epoch)
        if (parts := packer.minibatch(chosen, shards)) is not None
    ]
    return [
        _renumbered(
            rows, shard, every_row[learner], of_teacher[learner], [parts[learner] for parts in minibatches]
        )
        for learner, shard in enumerate(shards)
    ]


def trained_rows(rows: TrainingRows, train_every_row: bool) -> Array:
    """Bool [R]: the rows that some learner trains on."""
    has_response = rows.response_ids.lengths > 0
    return has_response if train_every_row else has_response & ((rows.advantages != 0.0) | rows.distilled)


def random_minibatches(
    group_ids: Sequence[str], num_minibatches: int, seed: Sequence[int]
) -> list[list[int]]:
    """All rows, of which ``group_ids`` are the groups, in ``num_minibatches`` parts of random whole groups.

    Their numbers of groups differ by at most one. Fewer parts if there are fewer groups.
    """
    of_group: dict[str, list[int]] = {}
    for row, group_id in enumerate(group_ids):
        of_group.setdefault(group_id, []).append(row)
    groups = list(of_group.values())
    order = np.random.default_rng(list(seed)).permutation(len(groups))
    parts: list[list[int]] = (
        [part.tolist() for part in np.array_split(order, min(num_minibatches, len(groups)))] if groups else []
    )
    return [[row for group in part for row in groups[group]] for part in parts]


def pack_by_prefix(
    tree: PrefixTree,
    indices: Sequence[int] | Array,
    micro_batch_tokens: int,
    copies_of_a_token: int | None = None,
) -> list[MicroBatch]:
    """The sequences at ``indices`` along their ``tree``, in micro-batches of at most ``micro_batch_tokens``.

    Tokens that they share count once. Where a sequence parts from others, ``copies_of_a_token`` of the tokens
    that it shares count as one more; none do without it. A sequence longer than the budget has a micro-batch
    to itself and to those that it begins with.
    """
    packed: list[MicroBatch] = []
    current: list[int] = []
    num_tokens = 0
    along, shared_before = tree.along(indices)
    lengths: list[int] = tree.lengths[along].tolist()
    order: list[int] = along.tolist()
    for index, length, shared in zip(order, lengths, shared_before.tolist(), strict=True):
        added = length - shared
        if added and copies_of_a_token:
            added += shared // copies_of_a_token
        if current and added and num_tokens + added > micro_batch_tokens:
            packed.append(tuple(current))
            current, num_tokens, added = [], 0, length
        current.append(index)
        num_tokens += added
    return [*packed, tuple(current)] if current else packed


def pack_by_length(
    rows: Sequence[int] | Array, lengths: Sequence[int] | Array, micro_batch_tokens: int
) -> list[MicroBatch]:
    """``rows`` in micro-batches of at most ``micro_batch_tokens`` tokens, padding included.

    ``lengths[i]`` belongs to ``rows[i]``. Rows of similar length come together, which keeps padding small; a
    row longer than the budget is a micro-batch of its own.
    """
    packed: list[MicroBatch] = []
    current: list[int] = []
    pairs: list[list[int]] = sorted(np.column_stack((lengths, rows)).tolist())
    for length, row in pairs:
        if current and (len(current) + 1) * length > micro_batch_tokens:
            packed.append(tuple(current))
            current = []
        current.append(row)
    return [*packed, tuple(current)] if current else packed


class _Packer:
    """Puts rows of one batch into shards and micro-batches; what it looks up often is looked up once.

    Sequence ``row`` is what a student reads of R rows, and R + ``row`` what the teacher does with evidence.
    """

    def __init__(self, rows: TrainingRows, micro_batch_tokens: int, as_trees: bool) -> None:
        self._budget = micro_batch_tokens
        self._num_rows = len(rows)
        self._num_response_tokens = rows.response_ids.lengths
        of_rows = np.repeat(np.arange(len(rows)), rows.action_mask.lengths)
        num_action_tokens = np.bincount(of_rows[rows.action_mask.values], minlength=len(rows))
        self._num_distilled_tokens = np.where(rows.distilled, num_action_tokens, 0)
        self._is_scored = rows.has_teacher_prompt
        self._lengths = np.concatenate((rows.num_tokens, rows.num_teacher_tokens))
        self._tree = PrefixTree(_sequences(rows)) if as_trees else None

    def shards(self, parts: Sequence[Sequence[int]], trained: Array, num_learners: int) -> list[Array]:
        """Row indices per learner, ascending, who share each of ``parts`` equally along its tree.

        The work on a row are the tokens that only it needs. Rows that are not ``trained`` are nobody's.
        """
        owners = np.full(self._num_rows, -1)
        for part in parts:
            rows = np.array(part)[trained[part]]
            scored = rows[self._is_scored[rows]]
            of_row, of_teacher = (self._num_computed(own) for own in (rows, scored + self._num_rows))
            work = of_row[: self._num_rows] + of_teacher[self._num_rows :]
            along = rows if self._tree is None else self._tree.along(rows)[0]
            middles = np.cumsum(work[along]) - work[along] / 2.0
            shares = (middles * num_learners / max(work.sum(), 1)).astype(np.int64)
            owners[along] = np.minimum(shares, num_learners - 1)
        return [np.flatnonzero(owners == learner) for learner in range(num_learners)]

    def for_scoring(self, sequences: Array) -> list[MicroBatch]:
        """Micro-batches of ``sequences`` for forward passes without a gradient.

        Two of the longest then need less memory than one with it: trees may have them. So the branches of one
        that fills the budget come together, and not each with all of it.
        """
        if self._tree is None:
            return pack_by_length(sequences, self._lengths[sequences], self._budget)
        longest = int(self._lengths[sequences].max(initial=0))
        return pack_by_prefix(self._tree, sequences, max(self._budget, 2 * longest))

    def for_teacher(self, shard: Array, compared: Array) -> list[TeacherMicroBatch]:
        """Those of the rows of ``shard`` that the teacher scores, and without context where ``compared``."""
        scored = shard[self._is_scored[shard]]
        sequences = np.concatenate((scored + self._num_rows, scored[compared[scored]]))
        return [
            TeacherMicroBatch(
                tuple(index - self._num_rows for index in packed if index >= self._num_rows),
                tuple(index for index in packed if index < self._num_rows),
            )
            for packed in self.for_scoring(sequences)
        ]

    def minibatch(self, chosen: Sequence[int], shards: Sequence[Array]) -> list[Minibatch] | None:
        """The minibatch of the rows ``chosen`` as each learner sees it; None if none of them is trained."""
        is_chosen = np.zeros(self._num_rows, dtype=np.bool_)
        is_chosen[list(chosen)] = True
        own = [shard[is_chosen[shard]] for shard in shards]
        num_trained_tokens = sum(int(self._num_response_tokens[part].sum()) for part in own)
        if num_trained_tokens == 0:
            return None
        num_loss_tokens = int(self._num_response_tokens[is_chosen].sum())
        num_distilled_tokens = int(self._num_distilled_tokens[is_chosen].sum())
        return [
            Minibatch(tuple(part), num_loss_tokens, len(chosen), num_trained_tokens, num_distilled_tokens)
            for part in _same_number([self._for_training(part) for part in own], ())
        ]

    def _for_training(self, rows: Array) -> list[MicroBatch]:
        if self._tree is None:
            return pack_by_length(rows, self._lengths[rows], self._budget)
        return pack_by_prefix(self._tree, rows, self._budget, _COPIES_OF_A_TOKEN)

    def _num_computed(self, sequences: Array) -> Array:
        """Of all 2 R sequences, for these alone."""
        if self._tree is not None:
            return self._tree.num_new(sequences)
        return np.where(np.isin(np.arange(len(self._lengths)), sequences), self._lengths, 0)


def _sequences(rows: TrainingRows) -> list[Array]:
    """Prompts with responses of all rows, then teacher prompts with responses; empty where there are none."""
    has_prompt = rows.has_teacher_prompt
    nothing = rows.response_ids.values[:0]
    own = [np.concatenate((rows.prompt_ids[row], rows.response_ids[row])) for row in range(len(rows))]
    return own + [
        np.concatenate((rows.teacher_prompt_ids[row], rows.response_ids[row])) if has_prompt[row] else nothing
        for row in range(len(rows))
    ]


def _same_number(packed: Sequence[list[_Part]], nothing: _Part) -> list[list[_Part]]:
    """Every learner's micro-batches, filled up with empty ones to the longest list."""
    longest = max(len(part) for part in packed)
    return [[*part, *[nothing] * (longest - len(part))] for part in packed]


def _renumbered(
    rows: TrainingRows,
    shard: Array,
    every_row: Sequence[MicroBatch],
    of_teacher: Sequence[TeacherMicroBatch],
    minibatches: Sequence[Minibatch],
) -> LearnerPlan:
    """The learner's plan, with indices into its own rows instead of the batch's."""
    own = {index: position for position, index in enumerate(shard.tolist())}

    def local(micro_batch: MicroBatch) -> MicroBatch:
        return tuple(own[index] for index in micro_batch)

    return LearnerPlan(
        rows=rows.take(shard.tolist()),
        micro_batches=tuple(map(local, every_row)),
        teacher_micro_batches=tuple(
            TeacherMicroBatch(local(part.with_context), local(part.without_context)) for part in of_teacher
        ),
        minibatches=tuple(
            replace(part, micro_batches=tuple(map(local, part.micro_batches))) for part in minibatches
        ),
    )

"""From a batch's rows to what every learner computes: shards, minibatches, micro-batches.

All of it is decided in one place, before anything is sent, from the whole batch. So every learner knows the
global denominators without asking the others, all of them make the same number of forward passes (FSDP2
needs that), and neither gradients nor minibatches depend on how many learners there are.

- Shards are rows, balanced by the tokens that learners compute for them, whatever group they are of.
- Minibatches are random rows of the whole batch, drawn anew for each epoch from the seed.
- A row with advantage 0 that is not distilled trains nothing, so nobody computes it; its tokens still count
  in the denominators, as they would if it were computed. A loss with terms of its own for such rows has them
  computed.
- Micro-batches hold rows of similar length within a token budget, counted with padding.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serl.batch.rows import Array, Ragged, TrainingRows

MicroBatch = tuple[int, ...]

# Of the budget: fewer prompt tokens saved are not worth a micro-batch of their own.
_MIN_SHARED_FRACTION = 0.125


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
class LearnerPlan:
    """One learner's part of one update: its trained rows, and the order of work.

    ``micro_batches`` hold every row once, ``teacher_micro_batches`` those that have a teacher prompt, and
    ``context_free_micro_batches`` those that the teacher also scores without the context.
    """

    rows: TrainingRows
    micro_batches: tuple[MicroBatch, ...]
    teacher_micro_batches: tuple[MicroBatch, ...]
    context_free_micro_batches: tuple[MicroBatch, ...]
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
) -> list[LearnerPlan]:
    """One plan per learner for a batch of ``rows``, those with advantage 0 included.

    ``seed`` (non-negative integers) alone decides the minibatches. Minibatches in which no row is trained
    are left out: rows are trained that have an advantage or are distilled, or all with ``train_every_row``.
    ``context_free_rows`` are indices of rows with a teacher prompt that the teacher scores without it too.
    Raises ValueError if ``num_learners`` is not positive.
    """
    if num_learners < 1:
        raise ValueError(f"num_learners must be positive, got {num_learners}")
    trained = trained_rows(rows, train_every_row)
    lengths = np.where(trained, rows.num_tokens + rows.num_teacher_tokens, 0)
    shards = _balanced_shards(lengths, num_learners)
    packer = _Packer(rows, micro_batch_tokens)
    scored = rows.has_teacher_prompt
    compared = np.zeros(len(rows), dtype=np.bool_)
    compared[list(context_free_rows)] = True
    every_row = _same_number([packer.for_scoring(shard, rows.prompt_ids) for shard in shards])
    with_evidence = _same_number(
        [packer.for_scoring(shard[scored[shard]], rows.teacher_prompt_ids) for shard in shards]
    )
    without_evidence = _same_number(
        [packer.for_scoring(shard[(scored & compared)[shard]], rows.prompt_ids) for shard in shards]
    )
    minibatches = [
        parts
        for epoch in range(num_epochs)
        for chosen in random_minibatches(len(rows), num_minibatches, [*seed, epoch])
        if (parts := packer.minibatch(chosen, shards)) is not None
    ]
    return [
        _renumbered(
            rows,
            shard,
            every_row=every_row[learner],
            with_evidence=with_evidence[learner],
            without_evidence=without_evidence[learner],
            minibatches=[parts[learner] for parts in minibatches],
        )
        for learner, shard in enumerate(shards)
    ]


def trained_rows(rows: TrainingRows, train_every_row: bool) -> Array:
    """Bool [R]: the rows that some learner trains on."""
    has_response = rows.response_ids.lengths > 0
    return has_response if train_every_row else has_response & ((rows.advantages != 0.0) | rows.distilled)


def random_minibatches(num_rows: int, num_minibatches: int, seed: Sequence[int]) -> list[list[int]]:
    """All of ``range(num_rows)`` in ``num_minibatches`` random parts whose sizes differ by at most one.

    Fewer parts if there are fewer rows.
    """
    order = np.random.default_rng(list(seed)).permutation(num_rows)
    return (
        [part.tolist() for part in np.array_split(order, min(num_minibatches, num_rows))] if num_rows else []
    )


def pack_by_length(rows: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
    """``rows`` in micro-batches of at most ``micro_batch_tokens`` tokens, padding included.

    ``lengths[i]`` belongs to ``rows[i]``. Rows of similar length come together, which keeps padding small; a
    row longer than the budget is a micro-batch of its own.
    """
    packed: list[MicroBatch] = []
    current: list[int] = []
    for length, row in sorted(zip(lengths, rows, strict=True)):
        if current and (len(current) + 1) * length > micro_batch_tokens:
            packed.append(tuple(current))
            current = []
        current.append(row)
    return [*packed, tuple(current)] if current else packed


class _Packer:
    """Puts rows of one batch into micro-batches; what it looks up often is looked up once."""

    def __init__(self, rows: TrainingRows, micro_batch_tokens: int) -> None:
        self._budget = micro_batch_tokens
        self._num_tokens = rows.num_tokens
        self._num_response_tokens = rows.response_ids.lengths
        of_rows = np.repeat(np.arange(len(rows)), rows.action_mask.lengths)
        num_action_tokens = np.bincount(of_rows[rows.action_mask.values], minlength=len(rows))
        self._num_distilled_tokens = np.where(rows.distilled, num_action_tokens, 0)
        self._prompts: list[bytes] = [rows.prompt_ids[row].tobytes() for row in range(len(rows))]
        self._prompt_lengths = rows.prompt_ids.lengths

    def for_scoring(self, shard: Array, prompt_ids: Ragged) -> list[MicroBatch]:
        """Micro-batches of the rows ``shard`` for forward passes without a gradient, behind ``prompt_ids``.

        Rows that a student had one prompt for, such as the first steps of a group, come together where that
        is worth a micro-batch: what their prompts begin with is then computed once (`make_token_batch`), even
        if the evidence after it differs. The budget holds where a model cannot do that, too.
        """
        lengths = prompt_ids.lengths + self._num_response_tokens
        with_prompt: dict[bytes, list[int]] = {}
        shard_rows: list[int] = shard.tolist()
        for row in shard_rows:
            with_prompt.setdefault(self._prompts[row], []).append(row)
        together: list[MicroBatch] = []
        alone: list[int] = []
        for sharing in with_prompt.values():
            num_saved = (len(sharing) - 1) * int(self._prompt_lengths[sharing[0]])
            if num_saved >= _MIN_SHARED_FRACTION * self._budget:
                together += pack_by_length(sharing, lengths[sharing].tolist(), self._budget)
            else:
                alone += sharing
        return [*together, *pack_by_length(alone, lengths[alone].tolist() if alone else [], self._budget)]

    def minibatch(self, chosen: Sequence[int], shards: Sequence[Array]) -> list[Minibatch] | None:
        """The minibatch of the rows ``chosen`` as each learner sees it; None if none of them is trained."""
        is_chosen = np.zeros(len(self._num_tokens), dtype=np.bool_)
        is_chosen[list(chosen)] = True
        own = [shard[is_chosen[shard]] for shard in shards]
        num_trained_tokens = sum(int(self._num_response_tokens[part].sum()) for part in own)
        if num_trained_tokens == 0:
            return None
        packed = [
            pack_by_length(part.tolist(), self._num_tokens[part].tolist(), self._budget) for part in own
        ]
        num_loss_tokens = int(self._num_response_tokens[is_chosen].sum())
        num_distilled_tokens = int(self._num_distilled_tokens[is_chosen].sum())
        return [
            Minibatch(tuple(part), num_loss_tokens, len(chosen), num_trained_tokens, num_distilled_tokens)
            for part in _same_number(packed)
        ]


def _balanced_shards(lengths: Array, num_learners: int) -> list[Array]:
    """Row indices per learner, ascending: the longest row first, to whoever has the fewest tokens so far.

    Rows of length 0 are nobody's.
    """
    shards: list[list[int]] = [[] for _ in range(num_learners)]
    loads = [(0, learner) for learner in range(num_learners)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        if lengths[row] == 0:
            break
        load, learner = loads[0]
        shards[learner].append(row)
        heapq.heapreplace(loads, (load + int(lengths[row]), learner))
    return [np.array(sorted(shard), dtype=np.int64) for shard in shards]


def _same_number(packed: list[list[MicroBatch]]) -> list[list[MicroBatch]]:
    """Every learner's micro-batches, filled up with empty ones to the longest list."""
    longest = max(len(part) for part in packed)
    return [[*part, *[()] * (longest - len(part))] for part in packed]


def _renumbered(
    rows: TrainingRows,
    shard: Array,
    *,
    every_row: list[MicroBatch],
    with_evidence: list[MicroBatch],
    without_evidence: list[MicroBatch],
    minibatches: list[Minibatch],
) -> LearnerPlan:
    """The learner's plan, with indices into its own rows instead of the batch's."""
    own = {index: position for position, index in enumerate(shard.tolist())}

    def local(micro_batches: Sequence[MicroBatch]) -> tuple[MicroBatch, ...]:
        return tuple(tuple(own[index] for index in micro_batch) for micro_batch in micro_batches)

    return LearnerPlan(
        rows=rows.take(shard.tolist()),
        micro_batches=local(every_row),
        teacher_micro_batches=local(with_evidence),
        context_free_micro_batches=local(without_evidence),
        minibatches=tuple(replace(part, micro_batches=local(part.micro_batches)) for part in minibatches),
    )

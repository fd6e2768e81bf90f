"""From a batch's samples to what every learner computes: shards, minibatches, micro-batches.

All of it is decided in one place, before anything is sent, from the whole batch. So every learner knows the
global denominators without asking the others, all of them make the same number of forward passes (FSDP2
needs that), and neither gradients nor minibatches depend on how many learners there are.

- A group is never split over learners; shards are balanced by tokens.
- Minibatches are random rows of the whole batch, drawn anew for each epoch from the seed.
- A row with advantage 0 trains nothing, so nobody computes it; its tokens still count in the denominators,
  as they would if it were computed. A loss with terms of its own for such rows has them computed.
- Micro-batches hold rows of similar length within a token budget, counted with padding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from serl.types import TrainingRow

MicroBatch = tuple[int, ...]

# Of the budget: fewer prompt tokens saved are not worth a micro-batch of their own.
_MIN_SHARED_FRACTION = 0.125


@dataclass(frozen=True, slots=True)
class Minibatch:
    """One optimizer step of one learner.

    A micro-batch lists indices into the learner's samples; an empty one keeps this learner in step with
    others that have more. ``num_loss_tokens`` and ``num_rows`` are the denominators: response tokens and
    rows of the minibatch over all learners, those that nobody computes included; ``num_trained_tokens``
    counts the response tokens of the others.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_loss_tokens: int
    num_rows: int
    num_trained_tokens: int


@dataclass(frozen=True, slots=True)
class LearnerPlan:
    """One learner's part of one update: its trained rows, and the order of work.

    ``micro_batches`` hold every row once, ``teacher_micro_batches`` those that have a teacher prompt and no
    teacher log-probs yet, each of one group, and ``context_free_micro_batches`` those that the teacher also
    scores without the context.
    """

    samples: list[TrainingRow]
    micro_batches: tuple[MicroBatch, ...]
    teacher_micro_batches: tuple[MicroBatch, ...]
    context_free_micro_batches: tuple[MicroBatch, ...]
    minibatches: tuple[Minibatch, ...]


def plan_update(
    samples: Sequence[TrainingRow],
    *,
    num_learners: int,
    num_minibatches: int,
    num_epochs: int,
    micro_batch_tokens: int,
    seed: Sequence[int],
    train_every_row: bool = False,
    context_free_rows: Collection[int] = (),
) -> list[LearnerPlan]:
    """One plan per learner for a batch of ``samples`` (whole groups, rows with advantage 0 included).

    ``seed`` (non-negative integers) alone decides the minibatches. Minibatches in which no row is trained
    are left out: rows are trained that have an advantage, or all with ``train_every_row``.
    ``context_free_rows`` are indices of rows with a teacher prompt that the teacher scores without it too.
    Raises ValueError if ``num_learners`` is not positive.
    """
    if num_learners < 1:
        raise ValueError(f"num_learners must be positive, got {num_learners}")
    lengths = [_trained_length(sample, train_every_row) for sample in samples]
    shards = _shards_of_whole_groups(samples, lengths, num_learners)

    def packed(rows: Collection[int]) -> list[list[MicroBatch]]:
        own = [[index for index in shard if index in rows] for shard in shards]
        return _same_number(
            [_pack_for_scoring(samples, part, _student_prompt, micro_batch_tokens) for part in own]
        )

    weighted = {index for index, sample in enumerate(samples) if sample.teacher_prompt_ids}
    minibatches: list[list[Minibatch]] = [[] for _ in shards]
    for epoch in range(num_epochs):
        for rows in random_minibatches(len(samples), num_minibatches, [*seed, epoch]):
            parts = _minibatch_parts(samples, shards, set(rows), micro_batch_tokens)
            if parts is not None:
                for learner, part in zip(minibatches, parts, strict=True):
                    learner.append(part)
    return [
        _renumbered(samples, *parts)
        for parts in zip(
            shards,
            packed(range(len(samples))),
            _teacher_micro_batches(samples, shards, micro_batch_tokens),
            packed(weighted.intersection(context_free_rows)),
            minibatches,
            strict=True,
        )
    ]


def plan_teacher_scores(
    samples: Sequence[TrainingRow], *, num_learners: int, micro_batch_tokens: int
) -> list[LearnerPlan]:
    """One plan per learner that has the teacher score ``samples`` (whole groups) and trains nothing.

    The micro-batches are those in which `plan_update` has the teacher score the same groups.
    """
    lengths = [sample.num_teacher_tokens for sample in samples]
    shards = _shards_of_whole_groups(samples, lengths, num_learners)
    weighted = _teacher_micro_batches(samples, shards, micro_batch_tokens)
    return [
        _renumbered(samples, shard, [], micro_batches, [], [])
        for shard, micro_batches in zip(shards, weighted, strict=True)
    ]


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


def _pack_for_scoring(
    samples: Sequence[TrainingRow],
    rows: Sequence[int],
    prompt: Callable[[TrainingRow], list[int]],
    micro_batch_tokens: int,
) -> list[MicroBatch]:
    """``rows`` in micro-batches for forward passes without a gradient.

    Rows that a student had one prompt for, such as the first steps of a group, come together where that is
    worth a micro-batch: what their prompts begin with is then computed once (`make_token_batch`), even if the
    evidence after it differs. The budget holds where a model cannot do that, too.
    """
    with_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        with_prompt.setdefault(tuple(samples[row].prompt_ids), []).append(row)
    together: list[MicroBatch] = []
    alone: list[int] = []

    def pack(part: Sequence[int]) -> list[MicroBatch]:
        lengths = [len(prompt(samples[row])) + len(samples[row].response_ids) for row in part]
        return pack_by_length(part, lengths, micro_batch_tokens)

    for ids, sharing in with_prompt.items():
        num_saved = (len(sharing) - 1) * len(ids)
        if num_saved >= _MIN_SHARED_FRACTION * micro_batch_tokens:
            together += pack(sharing)
        else:
            alone += sharing
    return [*together, *pack(alone)]


def _teacher_micro_batches(
    samples: Sequence[TrainingRow], shards: list[list[int]], micro_batch_tokens: int
) -> list[list[MicroBatch]]:
    """Every learner's micro-batches for the teacher.

    None of them mixes groups: how a row is rounded must not depend on when its group is scored.
    """
    packed: list[list[MicroBatch]] = []
    for shard in shards:
        by_group: dict[str, list[int]] = {}
        for row in shard:
            if samples[row].teacher_prompt_ids and samples[row].teacher_logprobs is None:
                by_group.setdefault(samples[row].group_id, []).append(row)
        packed.append(
            [
                micro_batch
                for rows in by_group.values()
                for micro_batch in _pack_for_scoring(samples, rows, _teacher_prompt, micro_batch_tokens)
            ]
        )
    return _same_number(packed)


def _student_prompt(sample: TrainingRow) -> list[int]:
    return sample.prompt_ids


def _teacher_prompt(sample: TrainingRow) -> list[int]:
    return sample.teacher_prompt_ids or []


def _trained_length(sample: TrainingRow, train_every_row: bool) -> int:
    """Tokens that a learner computes for the row; 0 if it is not trained."""
    if not sample.response_ids or (sample.advantage == 0.0 and not train_every_row):
        return 0
    return sample.num_tokens + sample.num_teacher_tokens


def _shards_of_whole_groups(
    samples: Sequence[TrainingRow], lengths: Sequence[int], num_learners: int
) -> list[list[int]]:
    """Row indices per learner: the group with the most tokens first, always to the least loaded learner.

    Rows of length 0 are nobody's.
    """
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.group_id, []).append(index)
    tokens = {group: sum(lengths[row] for row in rows) for group, rows in groups.items()}
    shards: list[list[int]] = [[] for _ in range(num_learners)]
    load = [0] * num_learners
    for group in sorted(groups, key=lambda group: (-tokens[group], group)):
        learner = min(range(num_learners), key=lambda candidate: (load[candidate], candidate))
        shards[learner] += groups[group]
        load[learner] += tokens[group]
    return [sorted(row for row in shard if lengths[row] > 0) for shard in shards]


def _minibatch_parts(
    samples: Sequence[TrainingRow], shards: list[list[int]], rows: set[int], micro_batch_tokens: int
) -> list[Minibatch] | None:
    """The minibatch ``rows`` as each learner sees it; None if none of its rows is trained."""
    own = [[index for index in shard if index in rows] for shard in shards]
    num_trained_tokens = sum(len(samples[index].response_ids) for shard in own for index in shard)
    if num_trained_tokens == 0:
        return None
    packed = [
        pack_by_length(shard, [samples[index].num_tokens for index in shard], micro_batch_tokens)
        for shard in own
    ]
    num_loss_tokens = sum(len(samples[index].response_ids) for index in rows)
    return [
        Minibatch(tuple(part), num_loss_tokens, len(rows), num_trained_tokens)
        for part in _same_number(packed)
    ]


def _same_number(packed: list[list[MicroBatch]]) -> list[list[MicroBatch]]:
    """Every learner's micro-batches, filled up with empty ones to the longest list."""
    longest = max(len(part) for part in packed)
    return [[*part, *[()] * (longest - len(part))] for part in packed]


def _renumbered(
    samples: Sequence[TrainingRow],
    shard: list[int],
    every_row: list[MicroBatch],
    weighted: list[MicroBatch],
    context_free: list[MicroBatch],
    minibatches: list[Minibatch],
) -> LearnerPlan:
    """The learner's plan, with indices into its own samples instead of the batch's."""
    own = {index: position for position, index in enumerate(shard)}

    def local(micro_batches: Sequence[MicroBatch]) -> tuple[MicroBatch, ...]:
        return tuple(tuple(own[index] for index in micro_batch) for micro_batch in micro_batches)

    return LearnerPlan(
        samples=[samples[index] for index in shard],
        micro_batches=local(every_row),
        teacher_micro_batches=local(weighted),
        context_free_micro_batches=local(context_free),
        minibatches=tuple(
            Minibatch(local(part.micro_batches), part.num_loss_tokens, part.num_rows, part.num_trained_tokens)
            for part in minibatches
        ),
    )

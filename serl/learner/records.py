"""What the learners made of single steps, for people to look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from serl.hindsight.teacher_weights import gap_parts
from serl.learner.response_tokens import ResponseTokens
from serl.learner.teacher import TaughtTokens
from serl.types import TeacherRecord, TrainingSample


def teacher_records(
    samples: Sequence[TrainingSample],
    tokens: ResponseTokens,
    taught: TaughtTokens,
    recorded: Collection[str],
) -> list[TeacherRecord]:
    """Those of the ``samples`` whose trajectories are ``recorded``, from the tensors of the update."""
    weighed = compared = torch.zeros_like(tokens.selected)
    effects = drifts = torch.zeros_like(tokens.old_logprobs)
    if taught.scores is not None:
        scores = taught.scores
        weighed, compared = tokens.selected, scores.compared
        effects, drifts = gap_parts(tokens.old_logprobs, scores.with_context, scores.without_context)
    records = []
    for row, sample in enumerate(samples):
        if sample.trajectory_id not in recorded:
            continue
        own = slice(int(tokens.starts[row]), int(tokens.starts[row + 1]))
        has_parts = bool(compared[own].any())
        records.append(
            TeacherRecord(
                trajectory_id=sample.trajectory_id,
                step_index=sample.step_index,
                advantage=sample.advantage,
                token_advantages=taught.advantages[own].tolist(),
                context=sample.context,
                weights=_where(weighed[own], taught.weights[own]),
                deltas=_where(weighed[own], taught.deltas[own]),
                feedback_effects=_where(compared[own], effects[own]) if has_parts else None,
                drifts=_where(compared[own], drifts[own]) if has_parts else None,
            )
        )
    return records


def untrained_records(
    samples: Sequence[TrainingSample], recorded: Collection[str], train_every_row: bool
) -> list[TeacherRecord]:
    """Those of the steps that no learner was given: their tokens have advantage 0, or there are none."""
    nothing: list[float | None] = [None]
    return [
        TeacherRecord(
            trajectory_id=sample.trajectory_id,
            step_index=sample.step_index,
            advantage=sample.advantage,
            token_advantages=[sample.advantage] * len(sample.response_ids),
            context=sample.context,
            weights=nothing * len(sample.response_ids),
            deltas=nothing * len(sample.response_ids),
            feedback_effects=None,
            drifts=None,
        )
        for sample in samples
        if sample.trajectory_id in recorded
        and not (sample.response_ids and (sample.advantage != 0.0 or train_every_row))
    ]


def _where(known: Tensor, values: Tensor) -> list[float | None]:
    return [value if marked else None for marked, value in zip(known.tolist(), values.tolist(), strict=True)]

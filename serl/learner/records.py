"""What the learners made of the recorded rows, for people to look at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from serl.batch.packing import trained_rows
from serl.batch.rows import TrainingRows
from serl.hindsight.teacher_weights import log_ratio_parts
from serl.learner.response_tokens import ResponseTokens
from serl.learner.teacher import WeightedTokens
from serl.types import TeacherRecord, TeacherRecords


def teacher_records(rows: TrainingRows, tokens: ResponseTokens, weighted: WeightedTokens) -> TeacherRecords:
    """Records of the ``rows`` that are to be recorded, from the tensors of the update."""
    scored = weighed = compared = torch.zeros_like(tokens.selected)
    effects = without_context = torch.zeros_like(tokens.old_logprobs)
    if weighted.scores is not None:
        scores = weighted.scores
        scored, compared = tokens.selected, scores.compared
        weighed = scored | (weighted.weights != 1.0)
        effects, without_context = log_ratio_parts(
            tokens.old_logprobs, scores.with_context, scores.without_context
        )
    records: TeacherRecords = {}
    for row in np.flatnonzero(rows.recorded).tolist():
        own = slice(int(tokens.starts[row]), int(tokens.starts[row + 1]))
        has_parts = bool(compared[own].any())
        records[rows.trajectory_ids[row], rows.step_indices[row]] = TeacherRecord(
            advantage=float(rows.advantages[row]),
            token_advantages=weighted.advantages[own].tolist(),
            context=rows.contexts.get(row),
            weights=_where(weighed[own], weighted.weights[own]),
            log_ratios=_where(scored[own], weighted.log_ratios[own]),
            context_effects=_where(compared[own], effects[own]) if has_parts else None,
            log_ratios_without_context=_where(compared[own], without_context[own]) if has_parts else None,
        )
    return records


def untrained_records(rows: TrainingRows, train_every_row: bool) -> TeacherRecords:
    """Records of rows that no learner is given: their tokens have advantage 0, or there are none."""
    untrained = rows.recorded & ~trained_rows(rows, train_every_row)
    records: TeacherRecords = {}
    for row in np.flatnonzero(untrained).tolist():
        num_tokens = int(rows.response_ids.lengths[row])
        advantage = float(rows.advantages[row])
        records[rows.trajectory_ids[row], rows.step_indices[row]] = TeacherRecord(
            advantage=advantage,
            token_advantages=[advantage] * num_tokens,
            context=rows.contexts.get(row),
            weights=[None] * num_tokens,
            log_ratios=[None] * num_tokens,
            context_effects=None,
            log_ratios_without_context=None,
        )
    return records


def _where(known: Tensor, values: Tensor) -> list[float | None]:
    return [value if marked else None for marked, value in zip(known.tolist(), values.tolist(), strict=True)]

"""What the learners made of single steps, for people to look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from serl.hindsight.teacher_weights import log_ratio_parts
from serl.learner.response_tokens import ResponseTokens
from serl.learner.teacher import WeightedTokens
from serl.types import TeacherRecord, TrainingRow


def teacher_records(
    samples: Sequence[TrainingRow],
    tokens: ResponseTokens,
    weighted: WeightedTokens,
    recorded: Collection[str],
) -> list[TeacherRecord]:
    """Those of the ``samples`` whose trajectories are ``recorded``, from the tensors of the update."""
    weighed = compared = torch.zeros_like(tokens.selected)
    effects = log_ratios_without_context = torch.zeros_like(tokens.old_logprobs)
    if weighted.scores is not None:
        scores = weighted.scores
        weighed, compared = tokens.selected, scores.compared
        effects, log_ratios_without_context = log_ratio_parts(
            tokens.old_logprobs, scores.with_context, scores.without_context
        )
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
                token_advantages=weighted.advantages[own].tolist(),
                context=sample.context,
                weights=_where(weighed[own], weighted.weights[own]),
                log_ratios=_where(weighed[own], weighted.log_ratios[own]),
                context_effects=_where(compared[own], effects[own]) if has_parts else None,
                log_ratios_without_context=_where(compared[own], log_ratios_without_context[own])
                if has_parts
                else None,
            )
        )
    return records


def untrained_records(
    samples: Sequence[TrainingRow], recorded: Collection[str], train_every_row: bool
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
            log_ratios=nothing * len(sample.response_ids),
            context_effects=None,
            log_ratios_without_context=None,
        )
        for sample in samples
        if sample.trajectory_id in recorded
        and not (sample.response_ids and (sample.advantage != 0.0 or train_every_row))
    ]


def _where(known: Tensor, values: Tensor) -> list[float | None]:
    return [value if marked else None for marked, value in zip(known.tolist(), values.tolist(), strict=True)]

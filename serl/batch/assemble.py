"""From finished groups to the rows of one update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from serl.batch.advantages import needs_batch
from serl.batch.group import FinishedGroup, add_evidence, finish, is_taught, scaled_advantages
from serl.batch.rows import Array, Ragged, TrainingRows
from serl.batch.teacher_prompts import ContextCounts
from serl.config import ExperimentConfig, LoggingSection
from serl.hindsight.schedules import distill_coefficient, teaches
from serl.rollout.prompt import PromptEncoder
from serl.types import Trajectory, TrajectoryGroup


class NothingToTrainError(RuntimeError):
    """No episode of a whole batch took a step."""


def assemble(
    finished: Sequence[FinishedGroup],
    config: ExperimentConfig,
    weights_seq_no: int,
    recorded: Collection[str] = frozenset(),
) -> tuple[TrainingRows, dict[str, float]]:
    """The rows of ``finished`` as update ``weights_seq_no`` trains on them, and metrics of the batch.

    Rows with advantage 0 stay: nobody computes them, but the loss is a mean over all rows (see
    `serl.batch.packing`). A row that is not taught has no teacher prompt, and none has one once λ and the
    distillation's coefficient are 0; a row is distilled if it has one.
    Rows of the trajectories ``recorded`` are marked, and only they keep the text of their context.

    Metrics: ``num_rows``, ``num_rows_with_advantage``, ``advantage_mean``, ``advantage_std`` and
    ``positive_fraction`` over the rows, the estimator's own, and while there is a teacher those of
    `ContextCounts`.
    """
    rows = TrainingRows.joined([group.rows for group in finished])
    estimator_metrics = _means_over_groups(finished)
    if needs_batch(config.advantage):
        advantages, estimator_metrics = scaled_advantages([group.group for group in finished], config)
        rows = replace(rows, advantages=advantages)
    has_teacher = teaches(config.hindsight, weights_seq_no)
    if distill_coefficient(config.hindsight, weights_seq_no) == 0.0:
        rows = replace(rows, distilled=np.zeros_like(rows.distilled))
    kept = is_taught(rows) & rows.has_teacher_prompt & has_teacher
    if not np.array_equal(kept, rows.has_teacher_prompt):
        rows = _without_other_teacher_prompts(rows, kept)
    marked = np.fromiter((name in recorded for name in rows.trajectory_ids), np.bool_, len(rows))
    shown = {index: text for index, text in rows.contexts.items() if marked[index]}
    metrics = estimator_metrics | _metrics(rows.advantages)
    if has_teacher:
        counts = ContextCounts()
        for group in finished:
            counts.add(group.context_counts or ContextCounts())
        metrics |= counts.metrics(config.hindsight.sources)
    rows = replace(rows, distilled=rows.distilled & kept, recorded=marked, contexts=shown)
    return rows, metrics


def require_rows(finished: Sequence[FinishedGroup], config: ExperimentConfig) -> None:
    """Raises NothingToTrainError, which says how the episodes ended, if no one took a step."""
    ends = Counter[str]()
    for trajectory in (t for group in finished for t in group.group.trajectories):
        if trajectory.steps:
            return
        ends[trajectory.end_reason] += 1
    told = ", ".join(f"{count} {reason}" for reason, count in ends.most_common())
    raise NothingToTrainError(
        f"there is nothing to train: no episode of the batch took a step ({told}). If prompts are too long, "
        f"raise rollout.max_prompt_length = {config.rollout.max_prompt_length}"
    )


def build_rows(
    groups: Sequence[TrajectoryGroup],
    config: ExperimentConfig,
    encoder: PromptEncoder,
    weights_seq_no: int,
    judge_texts: Mapping[str, str | None] | None = None,
    recorded: Collection[str] = frozenset(),
) -> tuple[TrainingRows, dict[str, float]]:
    """`finish`, `add_evidence` and `assemble` in one call, for whoever has complete groups and time."""
    finished = [finish(group, config) for group in groups]
    if teaches(config.hindsight, weights_seq_no):
        finished = [add_evidence(group, config, encoder, judge_texts or {}) for group in finished]
    return assemble(finished, config, weights_seq_no, recorded)


def trajectories_to_record(
    finished: Sequence[FinishedGroup], iteration: int, settings: LoggingSection
) -> list[Trajectory]:
    """The trajectories of ``iteration`` that people may look at, group by group.

    ``logging.trajectories_per_iteration`` of them at every ``logging.trajectories_interval``-th iteration:
    whole groups as far as that goes, zero-variance groups last, for the others have the advantages.
    """
    if iteration % settings.trajectories_interval:
        return []
    in_order = sorted(finished, key=lambda group: not group.has_variance)
    return [t for group in in_order for t in group.group.trajectories][: settings.trajectories_per_iteration]


def _means_over_groups(finished: Sequence[FinishedGroup]) -> dict[str, float]:
    """An estimator's metrics of groups: means weighted by rows, and the greatest of those named ``…_max``."""
    weighted: dict[str, list[tuple[float, int]]] = {}
    for group in finished:
        for name, value in group.estimator_metrics.items():
            weighted.setdefault(name, []).append((value, len(group.rows)))
    return {
        name: max(value for value, _ in pairs)
        if name.endswith("_max")
        else sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
        for name, pairs in weighted.items()
    }


def _without_other_teacher_prompts(rows: TrainingRows, kept: Array) -> TrainingRows:
    empty = rows.teacher_prompt_ids.values[:0]
    prompts = [rows.teacher_prompt_ids[row] if kept[row] else empty for row in range(len(rows))]
    return replace(
        rows,
        teacher_prompt_ids=Ragged.of(prompts, np.int32),
        evidence_sources=[own if kept[row] else () for row, own in enumerate(rows.evidence_sources)],
        contexts={row: text for row, text in rows.contexts.items() if kept[row]},
    )


def _metrics(advantages: Array) -> dict[str, float]:
    metrics = {
        "num_rows": float(len(advantages)),
        "num_rows_with_advantage": float(np.count_nonzero(advantages)),
    }
    if len(advantages):
        metrics |= {
            "advantage_mean": float(advantages.mean(dtype=np.float64)),
            "advantage_std": float(advantages.std(dtype=np.float64)),
            "positive_fraction": float((advantages > 0.0).mean()),
        }
    return metrics

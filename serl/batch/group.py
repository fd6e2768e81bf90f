"""`FinishedGroup`: a complete group with everything that follows from it, computed once.

    complete group ──finish──▶ variance, advantages, rows ──add_evidence──▶ teacher prompts

The filter, the judge, the records and the update all read it. A judge speaks between the two halves, and an
estimator that compares groups gives its advantages when the batch is assembled (`serl.batch.assemble`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serl.batch.advantages import estimate_advantages, needs_batch
from serl.batch.metrics import group_sums
from serl.batch.rewards import has_variance, rewarded_rows
from serl.batch.rows import Array, TrainingRows
from serl.batch.teacher_prompts import ContextCounts, add_teacher_prompts
from serl.config import ExperimentConfig, HindsightSection
from serl.hindsight.evidence import StepEvidence
from serl.rollout.prompt import PromptEncoder
from serl.types import Step, TrainingRow, Trajectory, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    """``rows`` has a row for each step, trajectory by trajectory.

    ``sums`` is what metrics of a batch are made of (`group_sums`), ``estimator_metrics`` what the estimator
    said of this group. ``context_counts`` is None until the teacher prompts are made.
    """

    group: TrajectoryGroup
    has_variance: bool
    rows: TrainingRows
    sums: Counter[str]
    estimator_metrics: dict[str, float]
    context_counts: ContextCounts | None = None

    @property
    def group_id(self) -> str:
        return self.group.group_id

    @property
    def taught_trajectories(self) -> list[Trajectory]:
        """The trajectories with a row that the teacher may change: evidence about others is not read."""
        taught: list[int] = np.flatnonzero(is_taught(self.rows)).tolist()
        owners = {self.rows.trajectory_ids[row] for row in taught}
        return [t for t in self.group.trajectories if t.trajectory_id in owners]


def finish(group: TrajectoryGroup, config: ExperimentConfig) -> FinishedGroup:
    """The first half: what follows from the trajectories alone.

    Where advantages need the whole batch, those of the group alone stand in for them until it is there.
    """
    varies = has_variance(group, config.advantage.normalize_by_length)
    advantages, metrics = scaled_advantages([group], config)
    rows = [
        _row(group, trajectory, index, step, _is_distilled(trajectory, varies, config.hindsight))
        for trajectory in group.trajectories
        for index, step in enumerate(trajectory.steps)
    ]
    return FinishedGroup(
        group=group,
        has_variance=varies,
        rows=replace(TrainingRows.of(rows), advantages=advantages),
        sums=group_sums(group, varies),
        estimator_metrics=metrics,
    )


def add_evidence(
    finished: FinishedGroup,
    config: ExperimentConfig,
    encoder: PromptEncoder,
    judge_texts: Mapping[str, str | None],
    lent: Sequence[StepEvidence] | None = None,
) -> FinishedGroup:
    """The second half: teacher prompts for rows that are taught, or have a chance of it in the batch.

    ``lent`` as in `add_teacher_prompts`.
    """
    chosen = is_taught(finished.rows)
    if needs_batch(config.advantage):
        chosen[:] = True
    rows, counts = add_teacher_prompts(
        finished.rows, finished.group, chosen, config.hindsight, encoder, judge_texts, lent
    )
    return replace(finished, rows=rows, context_counts=counts)


def is_taught(rows: TrainingRows) -> Array:
    """Bool [R]: the rows that a teacher may change, by their advantage or by distillation.

    Of what a hint led to there is no log-prob without it to compare a teacher's with.
    """
    return ((rows.advantages != 0.0) | rows.distilled) & ~rows.hinted


def scaled_advantages(
    groups: Sequence[TrajectoryGroup], config: ExperimentConfig
) -> tuple[Array, dict[str, float]]:
    """The advantage of every step of ``groups``, float32, negative ones times ``advantage.negative_scale``.

    Those of attempts that failed in spite of a hint are 0. Also the estimator's own metrics.
    """
    if not any(group.steps for group in groups):
        return np.zeros(0, dtype=np.float32), {}
    advantages, metrics = estimate_advantages(rewarded_rows(groups, config), config.advantage)
    values = advantages.numpy()
    scale = np.float32(config.advantage.negative_scale)
    scaled = np.where(values < 0.0, values * scale, values)
    attempts = [trajectory for group in groups for trajectory in group.trajectories]
    gave_up = [attempt.hint is not None and not attempt.success for attempt in attempts]
    scaled[np.repeat(gave_up, [len(attempt.steps) for attempt in attempts])] = 0.0
    return scaled, metrics


def _is_distilled(trajectory: Trajectory, varies: bool, settings: HindsightSection) -> bool:
    routed = {"all": True, "failed": not trajectory.success, "zero_variance": not varies}
    return settings.distills and trajectory.hint is None and routed[settings.distill.route]


def _row(
    group: TrajectoryGroup, trajectory: Trajectory, step_index: int, step: Step, distilled: bool
) -> TrainingRow:
    return TrainingRow(
        group_id=group.group_id,
        trajectory_id=trajectory.trajectory_id,
        step_index=step_index,
        prompt_ids=step.prompt_ids,
        response_ids=step.response_ids,
        old_logprobs=step.old_logprobs,
        action_mask=step.action_mask,
        advantage=0.0,
        weights_seq_no=step.weights_seq_no,
        distilled=distilled,
        hinted=trajectory.hint is not None,
    )

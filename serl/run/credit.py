"""The teacher's credit on recorded trajectories, as metrics of a run: see `serl.hindsight.credit`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from envs.base import MeasuringProvider
from serl.config import ExperimentConfig
from serl.config.hindsight import Weight
from serl.hindsight.credit import IDLE, REST, ScoredActions
from serl.rollout.progress import ActionKind, judged_trajectory, measuring_provider
from serl.types import Step, TeacherRecord, TeacherRecords, Trajectory

logger = logging.getLogger(__name__)


class CreditMeter:
    """Plays trajectories again with ``provider``, which says what their actions were worth."""

    def __init__(self, provider: MeasuringProvider, weight: Weight) -> None:
        self._provider = provider
        self._weight: Weight = weight

    @classmethod
    def of(cls, experiment: ExperimentConfig) -> CreditMeter | None:
        """None unless ``logging.credit``. Raises TypeError if the environment cannot measure progress."""
        if not experiment.logging.credit:
            return None
        provider = measuring_provider(experiment, "logging.credit = true")
        return cls(provider, experiment.hindsight.weight)

    def metrics(self, trajectories: Sequence[Trajectory], records: TeacherRecords) -> dict[str, float]:
        """AUCs of `teacher_score`, and how many steps that have one there are of each kind.

        An AUC is NaN where there is nothing to compare. Empty without trajectories.
        """
        if not trajectories:
            return {}
        scores: list[tuple[float, ActionKind, float, int]] = []
        logprobs: list[tuple[float, ActionKind, float, int]] = []
        num_not_judged = 0
        groups = {name: index for index, name in enumerate(dict.fromkeys(t.group_id for t in trajectories))}
        for trajectory in trajectories:
            steps = trajectory.steps
            try:
                judged = judged_trajectory(self._provider, trajectory)
            except ValueError as error:
                logger.warning("no credit is measured of %s: %s", trajectory.trajectory_id, error)
                num_not_judged += 1
                continue
            for index, (step, known) in enumerate(zip(steps, judged, strict=True)):
                record = records.get((trajectory.trajectory_id, index))
                score = None if record is None else teacher_score(record, step, self._weight)
                if record is not None and score is not None:
                    about = known.kind, record.advantage or 0.0, groups[trajectory.group_id]
                    scores.append((score, *about))
                    logprobs.append((action_logprob(step), *about))
        return credit_metrics(ScoredActions.of(scores), ScoredActions.of(logprobs)) | {
            "credit/trajectories_not_judged": float(num_not_judged)
        }


def teacher_score(record: TeacherRecord, step: Step, weight: Weight) -> float | None:
    """What ``weight`` is made of, in nats, over the tokens that the teacher scored; None if it scored none.

    Σ Δ, or for ``action_probability`` Σ log π_T(a | s, c): Δ and the student's log-prob.
    """
    scored = [
        log_ratio + (logprob if weight == "action_probability" else 0.0)
        for log_ratio, logprob in zip(record.log_ratios, step.old_logprobs, strict=True)
        if log_ratio is not None
    ]
    return sum(scored) if scored else None


def action_logprob(step: Step) -> float:
    """Σ log-probs (nats) that the sampler recorded of the action's tokens."""
    return sum(
        value for value, in_action in zip(step.old_logprobs, step.action_mask, strict=True) if in_action
    )


def credit_metrics(teacher: ScoredActions, student: ScoredActions) -> dict[str, float]:
    """Of the same actions by `teacher_score`, and by the student's own log-prob."""
    counts = Counter(teacher.kinds.tolist())
    return {
        "credit/auc_idle": teacher.auc(IDLE).value,
        "credit/auc_idle_positive": teacher.auc(IDLE, sign=1).value,
        "credit/auc_rest": teacher.auc(REST).value,
        "credit/student_auc_idle": student.auc(IDLE).value,
        "credit/num_progress": float(counts["progress"]),
        "credit/num_idle": float(counts["idle"]),
        "credit/num_inadmissible": float(counts["inadmissible"]),
    }

"""The teacher's credit on recorded trajectories, as metrics of a run: see `serl.hindsight.credit`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from envs.base import MeasuringProvider
from serl.config import ExperimentConfig
from serl.hindsight.credit import IDLE, REST, ScoredActions
from serl.rollout.progress import ActionKind, judged_trajectory, measuring_provider
from serl.types import Step, TeacherRecord, TeacherRecords, Trajectory

logger = logging.getLogger(__name__)


class CreditMeter:
    """Plays trajectories again with ``provider``, which says what their actions were worth."""

    def __init__(self, provider: MeasuringProvider) -> None:
        self._provider = provider

    @classmethod
    def of(cls, experiment: ExperimentConfig) -> CreditMeter | None:
        """None unless ``logging.credit``. Raises TypeError if the environment cannot measure progress."""
        if not experiment.logging.credit:
            return None
        return cls(measuring_provider(experiment, "logging.credit = true"))

    def metrics(self, trajectories: Sequence[Trajectory], records: TeacherRecords) -> dict[str, float]:
        """AUCs of Δ summed over each step's weighted tokens, and how many such steps there are of each kind.

        An AUC is NaN where there is nothing to compare. Empty without trajectories.
        """
        if not trajectories:
            return {}
        log_ratios: list[tuple[float, ActionKind, float, int]] = []
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
                score = None if record is None else summed_log_ratio(record)
                if record is not None and score is not None:
                    about = known.kind, record.advantage or 0.0, groups[trajectory.group_id]
                    log_ratios.append((score, *about))
                    logprobs.append((action_logprob(step), *about))
        return credit_metrics(ScoredActions.of(log_ratios), ScoredActions.of(logprobs)) | {
            "credit/trajectories_not_judged": float(num_not_judged)
        }


def summed_log_ratio(record: TeacherRecord) -> float | None:
    """Σ Δ in nats over the tokens that the teacher weighed; None where it weighed none."""
    weighed = [value for value in record.log_ratios if value is not None]
    return sum(weighed) if weighed else None


def action_logprob(step: Step) -> float:
    """Σ log-probs (nats) that the sampler recorded of the action's tokens."""
    return sum(
        value for value, in_action in zip(step.old_logprobs, step.action_mask, strict=True) if in_action
    )


def credit_metrics(teacher: ScoredActions, student: ScoredActions) -> dict[str, float]:
    """Of the same actions scored by the teacher's log-ratio, and by the student's own log-prob."""
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

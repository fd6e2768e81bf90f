"""Teacher scores of groups that are complete before their batch is.

Learners wait while a batch is incomplete; the teacher reads the complete groups then, and the update finds
their scores already there. They are the very numbers that the update would have computed: the teacher is that
of the coming update, and no micro-batch of the teacher mixes groups.
"""

from __future__ import annotations

from collections.abc import Sequence

from serl.batch.packing import LearnerPlan, plan_teacher_scores
from serl.batch.rows import build_rows
from serl.config import ExperimentConfig
from serl.hindsight.judge_request import judge_mode
from serl.learner.teacher import teacher_lambda
from serl.rollout.prompt import PromptEncoder
from serl.types import TrainingRow, TrajectoryGroup

_Row = tuple[str, int]


class EarlyScores:
    """What the teacher said of rows that have not been trained yet, by trajectory and step."""

    def __init__(self, experiment: ExperimentConfig, encoder: PromptEncoder) -> None:
        self._experiment = experiment
        self._encoder = encoder
        self._scored_groups: set[str] = set()
        self._logprobs: dict[_Row, list[float]] = {}
        self._seconds = 0.0
        self._teacher: int | None = None

    def plans(
        self, groups: Sequence[TrajectoryGroup], weights_seq_no: int, num_learners: int
    ) -> list[LearnerPlan]:
        """What the learners are to score of ``groups`` for the teacher of ``weights_seq_no``."""
        if not self._can_score(weights_seq_no):
            return []
        self._follow_teacher(weights_seq_no)
        new = [group for group in groups if group.group_id not in self._scored_groups]
        if not new:
            return []
        self._scored_groups.update(group.group_id for group in new)
        samples, _ = build_rows(new, self._experiment, self._encoder, weights_seq_no)
        if not any(sample.teacher_prompt_ids for sample in samples):
            return []
        budget = self._experiment.learner.micro_batch_tokens
        return plan_teacher_scores(samples, num_learners=num_learners, micro_batch_tokens=budget)

    def add(self, plans: Sequence[LearnerPlan], answers: Sequence[tuple[list[list[float]], float]]) -> None:
        """Keeps the learners' answers to ``plans``."""
        for plan, (logprobs, _) in zip(plans, answers, strict=True):
            for sample, own in zip(plan.samples, logprobs, strict=True):
                self._logprobs[sample.trajectory_id, sample.step_index] = own
        self._seconds += max(seconds for _, seconds in answers)

    def apply(self, samples: Sequence[TrainingRow], weights_seq_no: int) -> dict[str, float]:
        """Gives the samples of update ``weights_seq_no`` their scores, and forgets their groups.

        Returns the metrics ``num_early_teacher_tokens`` of the samples and ``seconds_early_teacher`` since
        the update before; nothing without a teacher.
        """
        if not self._can_score(weights_seq_no):
            self.clear()
            return {}
        self._follow_teacher(weights_seq_no)
        for sample in samples:
            if sample.teacher_prompt_ids:
                row = sample.trajectory_id, sample.step_index
                sample.teacher_logprobs = self._logprobs.pop(row, None)
        num_tokens = sum(s.num_teacher_tokens for s in samples if s.teacher_logprobs is not None)
        self._scored_groups -= {sample.group_id for sample in samples}
        seconds, self._seconds = self._seconds, 0.0
        return {"num_early_teacher_tokens": float(num_tokens), "seconds_early_teacher": seconds}

    def clear(self) -> None:
        self._scored_groups.clear()
        self._logprobs.clear()

    def _can_score(self, weights_seq_no: int) -> bool:
        """A judge may still be at work, and some advantages are known only when the whole batch is."""
        needs_batch = self._experiment.advantage.estimator == "reinforce_pp_baseline"
        is_judged = judge_mode(self._experiment.hindsight.sources) is not None
        return teacher_lambda(self._experiment.hindsight, weights_seq_no) > 0.0 and not (
            needs_batch or is_judged
        )

    def _follow_teacher(self, weights_seq_no: int) -> None:
        """Forgets everything that an older teacher said."""
        teacher = weights_seq_no // self._experiment.hindsight.teacher_sync_interval
        if teacher != self._teacher:
            self.clear()
            self._teacher = teacher

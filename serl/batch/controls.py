"""A control of hindsight: perfect credit in place of the teacher's.

Not in the paper. With Δ = ±∞ by whether the environment says that an action brought success nearer, the
weight of `serl.hindsight.teacher_weights` is one of its bounds:

    ŵ = 1 + weight_clip where progress and sign(A) agree, else 1 − weight_clip
    A' = A · ((1 − λ) + λ · ŵ)

on whole steps, tokens that are no action too. No credit that reweighting could be given is better.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from envs.base import MeasuringProvider
from serl.batch.advantages import needs_batch
from serl.batch.group import FinishedGroup
from serl.batch.rows import Array
from serl.config import ExperimentConfig, HindsightSection
from serl.hindsight.schedules import progress_lambda
from serl.rollout.progress import judged_trajectory, measuring_provider
from serl.types import Trajectory

logger = logging.getLogger(__name__)


def progress_weights(advantages: Array, progress: Array, weight_clip: float) -> Array:
    """ŵ of rows with ``advantages`` [R] by whether they made ``progress``, bool [R]; else 1."""
    agrees = (advantages > 0.0) == progress
    weights = np.where(agrees, 1.0 + weight_clip, 1.0 - weight_clip)
    return np.where(advantages == 0.0, 1.0, weights).astype(np.float32)


class ProgressJudge:
    """Plays the trajectories of groups again, in an environment that knows what their actions were worth."""

    def __init__(self, provider: MeasuringProvider, settings: HindsightSection) -> None:
        self._provider = provider
        self._settings = settings

    @classmethod
    def of(cls, experiment: ExperimentConfig) -> ProgressJudge | None:
        """None unless ``hindsight.control: progress``.

        Raises TypeError if the environment cannot judge, ValueError for an estimator that needs the batch.
        """
        if experiment.hindsight.control != "progress":
            return None
        provider = measuring_provider(experiment, "hindsight.control = progress")
        if needs_batch(experiment.advantage):
            raise ValueError(
                f"hindsight.control = progress contradicts advantage.estimator = "
                f"{experiment.advantage.estimator}: it weighs advantages before there is a batch"
            )
        return cls(provider, experiment.hindsight)

    def weigh(self, finished: FinishedGroup, weights_seq_no: int) -> FinishedGroup:
        """``finished`` with the advantages of the update that trains on ``weights_seq_no``.

        Trajectories that cannot be played again keep theirs, which is logged.
        """
        rows, lambda_ = finished.rows, progress_lambda(self._settings, weights_seq_no)
        if lambda_ == 0.0 or not rows.advantages.any():
            return finished
        weights = np.ones_like(rows.advantages)
        first = 0
        for trajectory in finished.group.trajectories:
            own = slice(first, first + len(trajectory.steps))
            first = own.stop
            progress = self._progress(trajectory)
            if progress is not None:
                weights[own] = progress_weights(rows.advantages[own], progress, self._settings.weight_clip)
        advantages = rows.advantages * ((1.0 - lambda_) + lambda_ * weights)
        return replace(finished, rows=replace(rows, advantages=advantages.astype(np.float32)))

    def _progress(self, trajectory: Trajectory) -> Array | None:
        try:
            judged = judged_trajectory(self._provider, trajectory)
        except ValueError as error:
            logger.warning("%s keeps its advantages: %s", trajectory.trajectory_id, error)
            return None
        return np.array([step.kind == "progress" for step in judged], dtype=np.bool_)

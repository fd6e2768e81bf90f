"""What held-out tasks say: success by task type with a 95 % interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from serl.batch.metrics import episode_means
from serl.rollout.episode import EPISODE_METRICS
from serl.rollout.report import ENV_RUNNER_DIED, FailedRollout
from serl.types import RolloutRequest, Trajectory

_Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """``successes`` of ``count`` tasks; ``low`` and ``high`` bound the 95 % interval."""

    successes: int
    count: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.successes / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """An evaluation at ``weights_seq_no``. ``unfinished`` tasks gave no episode and count as failures.

    ``outcomes``: whether each task that gave an episode was solved, by task id, which pairs two runs task by
    task. ``environment``: the environment's own metrics, such as a task score, as means over the episodes.
    ``mean_return`` is None for one that an earlier version recorded, and where no task gave an episode.
    """

    weights_seq_no: int
    overall: SuccessRate
    by_task_type: dict[str, SuccessRate]
    mean_steps: float
    invalid_action_rate: float
    unfinished: int
    seconds: float
    outcomes: dict[str, bool] = field(default_factory=dict)
    environment: dict[str, float] = field(default_factory=dict)
    mean_return: float | None = None

    def metrics(self) -> dict[str, float]:
        """Flat metrics below ``evaluation/``."""
        flat = {
            "evaluation/success": self.overall.rate,
            "evaluation/success_low": self.overall.low,
            "evaluation/success_high": self.overall.high,
            "evaluation/tasks": float(self.overall.count),
            "evaluation/unfinished": float(self.unfinished),
            "evaluation/mean_steps": self.mean_steps,
            "evaluation/invalid_action_rate": self.invalid_action_rate,
            "evaluation/seconds": self.seconds,
            # RLlib's names.
            "evaluation/env_runners/num_episodes": float(self.overall.count - self.unfinished),
            "evaluation/env_runners/episode_len_mean": self.mean_steps,
        }
        if self.mean_return is not None:
            flat["evaluation/env_runners/episode_return_mean"] = self.mean_return
        for task_type, success in self.by_task_type.items():
            flat[f"evaluation/success_by_task_type/{task_type}"] = success.rate
        for name, mean in self.environment.items():
            flat[f"evaluation/{name}"] = mean
        return flat


def wilson_interval(successes: int, count: int) -> SuccessRate:
    """The 95 % score interval of a proportion (Wilson 1927, eq. 2 solved for p).

    It stays inside [0, 1] and keeps its width at 0 and at ``count`` successes; no tasks give [0, 1].
    """
    if count == 0:
        return SuccessRate(0, 0, 0.0, 1.0)
    rate, z2 = successes / count, _Z_95**2
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z_95 / (1 + z2 / count) * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
    # Rounding must not put the bounds of these two on the wrong side of the rate.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == count else centre + half
    return SuccessRate(successes, count, low, high)


def evaluation_result(
    trajectories: Sequence[Trajectory], num_tasks: int, weights_seq_no: int, seconds: float
) -> EvaluationResult:
    """Summarises one evaluation; tasks without a trajectory count as failures of the overall rate."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        outcomes[trajectory.task.task_type].append(trajectory.success)
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    return EvaluationResult(
        weights_seq_no=weights_seq_no,
        overall=wilson_interval(sum(t.success for t in trajectories), num_tasks),
        by_task_type={
            task_type: wilson_interval(sum(wins), len(wins)) for task_type, wins in sorted(outcomes.items())
        },
        mean_steps=len(steps) / len(trajectories) if trajectories else 0.0,
        invalid_action_rate=sum(not s.action_valid for s in steps) / len(steps) if steps else 0.0,
        unfinished=num_tasks - len(trajectories),
        seconds=seconds,
        outcomes={t.task.task_id: t.success for t in sorted(trajectories, key=lambda t: t.task.task_id)},
        environment={
            name: mean for name, mean in episode_means(trajectories).items() if name not in EPISODE_METRICS
        },
        mean_return=sum(t.reward for t in trajectories) / len(trajectories) if trajectories else None,
    )


class EvaluationEpisodes:
    """The episodes of one evaluation: those that are played, ``finished`` and ``failed`` ones.

    An episode that was lost with its env runner is played again.
    """

    def __init__(self, requests: Sequence[RolloutRequest]) -> None:
        self._pending = {request.group_id for request in requests}
        self.finished: list[Trajectory] = []
        self.failed: list[FailedRollout] = []

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def take(
        self, trajectories: Sequence[Trajectory], failures: Sequence[FailedRollout]
    ) -> list[RolloutRequest]:
        """Takes what the env runners reported; returns the requests to be sent again."""
        for trajectory in trajectories:
            if trajectory.group_id in self._pending:
                self._pending.discard(trajectory.group_id)
                self.finished.append(trajectory)
        lost = [failure for failure in failures if failure.request.group_id in self._pending]
        again = [failure.request for failure in lost if failure.reason == ENV_RUNNER_DIED]
        for failure in lost:
            if failure.reason != ENV_RUNNER_DIED:
                self._pending.discard(failure.request.group_id)
                self.failed.append(failure)
        return again

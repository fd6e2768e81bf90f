"""What each step is rewarded with, before it is compared with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from serl.batch.step_rows import StepRows
from serl.config import ExperimentConfig
from serl.types import Trajectory, TrajectoryGroup


def rewarded_rows(groups: Sequence[TrajectoryGroup], config: ExperimentConfig) -> StepRows:
    """The rows of ``groups`` with their rewards as advantages compare them.

    A row's reward is its trajectory's return (per step with ``advantage.normalize_by_length``); its own and
    its step's are less by ``env.invalid_action_penalty`` where the action was invalid.
    """
    rows = StepRows.from_groups(groups)
    rewards = rows.rewards / rows.num_steps if config.advantage.normalize_by_length else rows.rewards
    invalid = torch.tensor([not step.action_valid for group in groups for step in group.steps])
    penalties = config.env.invalid_action_penalty * invalid
    return replace(rows, rewards=rewards - penalties, step_rewards=rows.step_rewards - penalties)


def has_variance(group: TrajectoryGroup, normalize_by_length: bool) -> bool:
    """Whether the trajectories' returns (per step with ``normalize_by_length``) differ.

    Penalties for invalid actions do not count: attempts that all fail say nothing of how to succeed.
    """

    def compared(trajectory: Trajectory) -> float:
        per = len(trajectory.steps) if normalize_by_length else 1
        return trajectory.reward / max(per, 1)

    return len({compared(trajectory) for trajectory in group.trajectories}) > 1

"""The rows advantages are computed on: one row per step of every trajectory."""

# pyright: reportUnknownMemberType=false
# torch does not say what `tolist` returns.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from serl.types import TrajectoryGroup

STD_EPS = 1e-6

# What a group's mean and std are taken over: all of its step rows, or one row a trajectory.
Across = Literal["steps", "trajectories"]


@dataclass(frozen=True, slots=True)
class StepRows:
    """The step rows of whole groups, trajectory by trajectory, steps in order.

    ``rewards`` [rows]: the return of the row's trajectory. ``step_rewards`` [rows]: what the step itself was
    given. ``groups`` and ``trajectories`` [rows] (long): 0 … count − 1, trajectories counted over all groups.
    ``num_tokens`` [rows]: response tokens. ``anchors``: the observations acted on.
    """

    rewards: Tensor
    step_rewards: Tensor
    groups: Tensor
    trajectories: Tensor
    num_tokens: Tensor
    anchors: Sequence[str] = field(repr=False)

    @classmethod
    def from_groups(cls, groups: Sequence[TrajectoryGroup]) -> StepRows:
        """The rows of ``groups`` with the rewards that the environment gave. No steps, no row."""
        members = [(index, t) for index, group in enumerate(groups) for t in group.trajectories if t.steps]
        lengths = torch.tensor([len(t.steps) for _, t in members], dtype=torch.long)
        rewards = torch.tensor([t.reward for _, t in members], dtype=torch.float64)
        group_index = torch.tensor([index for index, _ in members], dtype=torch.long)
        steps = [step for _, t in members for step in t.steps]
        return cls(
            rewards=rewards.repeat_interleave(lengths),
            step_rewards=torch.tensor([step.reward for step in steps], dtype=torch.float64),
            groups=group_index.repeat_interleave(lengths),
            trajectories=torch.arange(len(members)).repeat_interleave(lengths),
            num_tokens=torch.tensor([len(step.response_ids) for step in steps], dtype=torch.long),
            anchors=[step.anchor for step in steps],
        )

    @property
    def num_steps(self) -> Tensor:
        """[rows] (long): how many steps the row's trajectory has."""
        return self.trajectories.bincount()[self.trajectories]

    @property
    def first_of_trajectory(self) -> Tensor:
        """Bool [rows]: the first row of each trajectory."""
        first = torch.ones_like(self.trajectories, dtype=torch.bool)
        first[1:] = self.trajectories[1:] != self.trajectories[:-1]
        return first


def discounted_returns(rows: StepRows, gamma: float) -> Tensor:
    """G_t = r_t + γ · G_{t+1} of the step rewards of each trajectory, [rows], in float64."""
    returns: list[float] = []
    later, trajectory = 0.0, -1
    rewards = cast("list[float]", rows.step_rewards.tolist())
    trajectories = cast("list[int]", rows.trajectories.tolist())
    for reward, own in zip(reversed(rewards), reversed(trajectories), strict=True):
        later = reward + gamma * (later if own == trajectory else 0.0)
        trajectory = own
        returns.append(later)
    return torch.tensor(returns[::-1], dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class ClusterStatistics:
    """Per row, over the values of the row's cluster: mean, sample std (n − 1), count, whether they differ.

    A cluster with one value has mean 0 and std 1.
    """

    mean: Tensor
    std: Tensor
    count: Tensor
    has_variance: Tensor


def cluster_statistics(values: Tensor, clusters: Tensor, counted: Tensor | None = None) -> ClusterStatistics:
    """Statistics of ``values`` [rows] within equal ``clusters`` [rows] (long), in float64.

    ``counted`` (bool [rows]) says which rows contribute; None: all of them. ``has_variance`` is max > min,
    for in floating point the variance of equal values need not be 0.
    """
    values = values.double()
    chosen = torch.ones_like(clusters, dtype=torch.bool) if counted is None else counted
    size = int(clusters.max()) + 1 if clusters.numel() else 0
    zeros = values.new_zeros(size)
    index, value = clusters[chosen], values[chosen]
    count = zeros.index_add(0, index, torch.ones_like(value))
    mean = zeros.index_add(0, index, value) / count.clamp(min=1.0)
    variance = zeros.index_add(0, index, (value - mean[index]) ** 2) / (count - 1.0).clamp(min=1.0)
    high = zeros.scatter_reduce(0, index, value, "amax", include_self=False)
    low = zeros.scatter_reduce(0, index, value, "amin", include_self=False)
    single = count <= 1.0
    mean = torch.where(single, 0.0, mean)
    std = torch.where(single, 1.0, variance.sqrt())
    return ClusterStatistics(mean[clusters], std[clusters], count[clusters], (high > low)[clusters])


def group_statistics(rows: StepRows, across: Across) -> ClusterStatistics:
    """Statistics of the rewards within groups, over all step rows or over one value per trajectory."""
    counted = None if across == "steps" else rows.first_of_trajectory
    return cluster_statistics(rows.rewards, rows.groups, counted)


def relative(values: Tensor, statistics: ClusterStatistics, normalize_std: bool) -> Tensor:
    """value − mean, divided by std + 1e-6 if ``normalize_std``; exactly 0 in a cluster of equal values."""
    centered = values.double() - statistics.mean
    if normalize_std:
        centered = centered / (statistics.std + STD_EPS)
    return torch.where(statistics.has_variance | (statistics.count <= 1.0), centered, 0.0)

"""The rows advantages are computed on: one row per step of every trajectory of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from serl.types import TrajectoryGroup

Across = Literal["steps", "trajectories"]
STD_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class StepRows:
    """All step rows of a whole batch, trajectory by trajectory, steps in order.

    ``rewards`` [rows]: the return of the row's trajectory. ``groups`` and ``trajectories`` [rows] (long):
    0 … count − 1, trajectories counted over the batch. ``discounted_returns`` [rows]: Σ γ^k · reward over the
    step and those after it. ``num_tokens`` [rows]: response tokens. ``anchors``: the observations acted on.
    """

    rewards: Tensor
    groups: Tensor
    trajectories: Tensor
    discounted_returns: Tensor
    num_tokens: Tensor
    anchors: Sequence[str] = field(repr=False)

    @classmethod
    def from_groups(cls, groups: Sequence[TrajectoryGroup], gamma: float) -> StepRows:
        """The rows of ``groups``; step rewards are discounted with ``gamma``. No steps, no row."""
        members = [(index, t) for index, group in enumerate(groups) for t in group.trajectories if t.steps]
        lengths = torch.tensor([len(t.steps) for _, t in members], dtype=torch.long)
        rewards = torch.tensor([t.reward for _, t in members], dtype=torch.float64)
        group_index = torch.tensor([index for index, _ in members], dtype=torch.long)
        returns = [g for _, t in members for g in discounted_returns([s.reward for s in t.steps], gamma)]
        steps = [step for _, t in members for step in t.steps]
        return cls(
            rewards=rewards.repeat_interleave(lengths),
            groups=group_index.repeat_interleave(lengths),
            trajectories=torch.arange(len(members)).repeat_interleave(lengths),
            discounted_returns=torch.tensor(returns, dtype=torch.float64),
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


def discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """G_t = r_t + γ · G_{t+1} for every step of one trajectory."""
    returns: list[float] = []
    later = 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        returns.append(later)
    return returns[::-1]


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Per row, over the values of the row's cluster: mean, sample std (n − 1), count, and max > min.

    A cluster with one value has mean 0 and std 1.
    """

    mean: Tensor
    std: Tensor
    count: Tensor
    spread: Tensor


def cluster_statistics(values: Tensor, clusters: Tensor, counted: Tensor | None = None) -> GroupStatistics:
    """Statistics of ``values`` [rows] within equal ``clusters`` [rows] (long), in float64.

    ``counted`` (bool [rows]) says which rows contribute; None: all of them.
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
    return GroupStatistics(mean[clusters], std[clusters], count[clusters], (high > low)[clusters])


def group_statistics(rows: StepRows, across: Across) -> GroupStatistics:
    """Statistics of the rewards within groups, over all step rows or over one value per trajectory."""
    if across not in ("steps", "trajectories"):
        raise ValueError(f"unknown across {across!r}; known: steps, trajectories")
    counted = None if across == "steps" else rows.first_of_trajectory
    return cluster_statistics(rows.rewards, rows.groups, counted)


def relative(values: Tensor, statistics: GroupStatistics, normalize_std: bool) -> Tensor:
    """value − mean, divided by std + 1e-6 if ``normalize_std``; exactly 0 in a cluster of equal values."""
    centered = values.double() - statistics.mean
    if normalize_std:
        centered = centered / (statistics.std + STD_EPS)
    return torch.where(statistics.spread | (statistics.count <= 1.0), centered, 0.0)

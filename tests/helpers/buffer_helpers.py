"""Rollout requests, and trajectories that could have come back for them."""

from __future__ import annotations

from dataclasses import dataclass

from trajectories import make_step, make_trajectory

from serl.buffer.group_buffer import GroupBuffer
from serl.types import RolloutRequest, Task, Trajectory, TrajectoryGroup


def trajectory(
    request: RolloutRequest, version: int | None = 0, reward: float = 0.0, num_steps: int = 1
) -> Trajectory:
    steps = [] if version is None else [make_step(weights_seq_no=version) for _ in range(num_steps)]
    return make_trajectory(steps, reward, request.group_id, request.rollout_index, task=request.task)


def group_of(group_id: str, group_size: int = 2) -> list[RolloutRequest]:
    return [
        RolloutRequest(Task(f"task of {group_id}"), group_id, rollout_index, seed=rollout_index)
        for rollout_index in range(group_size)
    ]


@dataclass(frozen=True)
class FinishedWithoutRows:
    """What the buffer needs of `serl.batch.group.FinishedGroup`."""

    group: TrajectoryGroup
    has_variance: bool


Buffer = GroupBuffer[FinishedWithoutRows]


def buffer(
    group_size: int = 2, groups_per_batch: int = 1, max_staleness: int = 1, filtered: int | None = None
) -> Buffer:
    return GroupBuffer(
        group_size,
        groups_per_batch,
        max_staleness,
        filtered is not None,
        max_filtered_groups_per_batch=filtered or 1,
    )


def give(target: Buffer, trajectory: Trajectory) -> None:
    """Adds ``trajectory``; a group that it completes is finished and filed at once."""
    group = target.add(trajectory)
    if group is not None:
        has_variance = len({t.reward for t in group.trajectories}) > 1
        target.file(FinishedWithoutRows(group, has_variance))

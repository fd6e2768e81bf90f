"""Steps and trajectories of which a test states only what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serl.types import Step, Task, Trajectory, VersionSpan


def make_step(response_ids: Sequence[int] = (3,), weights_seq_no: int = 0, **fields: Any) -> Step:
    """A valid step "look" in "a room", whose response one version of the weights sampled."""
    plain: dict[str, Any] = {
        "prompt_ids": [1, 2],
        "response_ids": list(response_ids),
        "old_logprobs": [-0.5] * len(response_ids),
        "action_mask": [True] * len(response_ids),
        "version_spans": (VersionSpan(0, len(response_ids), weights_seq_no),),
        "finish_reason": "stop",
        "messages": ({"role": "user", "content": "You are in a room."},),
        "response_text": "<action>look</action>",
        "anchor": "a room",
        "action": "look",
        "action_valid": True,
        "feedback": None,
        "next_observation": "a room",
    }
    return Step(**(plain | fields))


def make_trajectory(
    steps: Sequence[Step], reward: float = 0.0, group_id: str = "g", rollout_index: int = 0, **fields: Any
) -> Trajectory:
    """A trajectory of its group's own task; a positive reward is a success."""
    plain: dict[str, Any] = {
        "trajectory_id": f"{group_id}-{rollout_index}",
        "task": Task(f"task of {group_id}"),
        "success": reward > 0,
        "end_reason": "success" if reward > 0 else "max_steps",
    }
    return Trajectory(
        group_id=group_id,
        rollout_index=rollout_index,
        steps=list(steps),
        reward=reward,
        **(plain | fields),
    )

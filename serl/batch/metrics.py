"""The numbers of one iteration, flat, under names that TensorBoard groups by their first part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from serl.types import Trajectory, TrajectoryGroup


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def batch_metrics(groups: Sequence[TrajectoryGroup], weights_seq_no: int) -> dict[str, float]:
    """What the groups of one update looked like; ``weights_seq_no`` is the version they are trained at.

    ``prefix_cache_hit_rate`` is the share of prompt tokens that the engine did not compute again.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    prompt_tokens = sum(len(step.prompt_ids) for step in steps)
    versions = [t.weights_seq_no for t in trajectories if t.weights_seq_no is not None]
    staleness = [weights_seq_no - version for version in versions]
    metrics = {
        "rollout/success": _mean(t.success for t in trajectories),
        "rollout/return": _mean(t.reward for t in trajectories),
        "rollout/episode_steps": _mean(len(t.steps) for t in trajectories),
        "rollout/invalid_action_rate": _mean(not step.action_valid for step in steps),
        "rollout/no_action_rate": _mean(step.action is None for step in steps),
        "rollout/prompt_tokens": _mean(len(step.prompt_ids) for step in steps),
        "rollout/response_tokens": _mean(len(step.response_ids) for step in steps),
        "rollout/truncated_response_rate": _mean(step.finish_reason == "length" for step in steps),
        "rollout/action_token_share": sum(sum(s.action_mask) for s in steps)
        / max(1, sum(len(s.response_ids) for s in steps)),
        "rollout/prefix_cache_hit_rate": sum(s.num_cached_tokens for s in steps) / max(1, prompt_tokens),
        "rollout/groups_with_variance": _mean(len({t.reward for t in g.trajectories}) > 1 for g in groups),
        "staleness/mean": _mean(staleness),
        "staleness/max": float(max(staleness, default=0)),
        "batch/groups": float(len(groups)),
        "batch/steps": float(len(steps)),
        "batch/tokens": float(sum(group.num_tokens for group in groups)),
    }
    for reason, count in Counter(t.end_reason for t in trajectories).items():
        metrics[f"rollout/end_{reason}"] = count / max(1, len(trajectories))
    return (
        metrics
        | _success_by_task_type(trajectories)
        | {f"episode/{name}": mean for name, mean in episode_means(trajectories).items()}
    )


def _success_by_task_type(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    by_type: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        by_type.setdefault(trajectory.task.task_type or "all", []).append(trajectory.success)
    return {f"rollout/success_by_task_type/{task_type}": _mean(wins) for task_type, wins in by_type.items()}


def episode_means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean of each metric of episodes over the trajectories that have it."""
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in trajectory.metrics.items():
            values.setdefault(name, []).append(value)
    return {name: _mean(numbers) for name, numbers in values.items()}

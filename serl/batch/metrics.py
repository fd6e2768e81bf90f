"""What the groups of an update looked like: sums of each group, made once, and the means of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from serl.types import Trajectory, TrajectoryGroup, staleness

# In a group's sums: how many trajectories ended for a reason, and what they and their metrics came to.
_END, _TASK_TYPE, _SUCCESS_OF, _EPISODES_WITH, _EPISODE = "end/", "type/", "success/", "episodes/", "episode/"


def group_sums(group: TrajectoryGroup, has_variance: bool) -> Counter[str]:
    """Sums over the trajectories and steps of ``group`` that `batch_metrics` makes means of.

    Attempts that were given a hint count as such, and in steps and tokens: success is that of the others.
    """
    plain = [trajectory for trajectory in group.trajectories if trajectory.hint is None]
    hinted = [trajectory for trajectory in group.trajectories if trajectory.hint is not None]
    outcomes = {trajectory.success for trajectory in plain}
    sums: Counter[str] = Counter(
        groups=1,
        zero_variance_groups=not has_variance,
        all_won_groups=outcomes == {True},
        all_failed_groups=outcomes == {False},
        episodes=len(group.trajectories),
        hinted_episodes=len(hinted),
        hinted_successes=sum(trajectory.success for trajectory in hinted),
    )
    for trajectory in plain:
        success, task_type = int(trajectory.success), trajectory.task.task_type or "all"
        sums.update(
            {
                "trajectories": 1,
                "successes": success,
                "returns": trajectory.reward,  # type: ignore[dict-item]
                f"{_END}{trajectory.end_reason}": 1,
                f"{_TASK_TYPE}{task_type}": 1,
                f"{_SUCCESS_OF}{task_type}": success,
            }
        )
        for name, value in trajectory.metrics.items():
            sums.update({f"{_EPISODES_WITH}{name}": 1, f"{_EPISODE}{name}": value})  # type: ignore[dict-item]
    for step in group.steps:
        sums.update(
            steps=1,
            invalid_actions=not step.action_valid,
            no_actions=step.action is None,
            prompt_tokens=len(step.prompt_ids),
            response_tokens=len(step.response_ids),
            truncated_responses=step.finish_reason == "length",
            action_tokens=sum(step.action_mask),
            cached_tokens=step.num_cached_tokens,
        )
    return sums


def batch_metrics(
    sums: Iterable[Counter[str]], trajectories: Sequence[Trajectory], weights_seq_no: int
) -> dict[str, float]:
    """The means of a batch from its groups' ``sums``; ``weights_seq_no`` is the version it is trained at.

    ``prefix_cache_hit_rate`` is the share of prompt tokens that the engine did not compute again.
    """
    total: Counter[str] = Counter()
    for of_group in sums:
        total.update(of_group)

    def rate(name: str, of: str) -> float:
        return total[name] / total[of] if total[of] else 0.0

    ages = [staleness(trajectory, weights_seq_no) for trajectory in trajectories if trajectory.steps]
    metrics = {
        "rollout/success": rate("successes", "trajectories"),
        "rollout/return": rate("returns", "trajectories"),
        "rollout/episode_steps": rate("steps", "episodes"),
        "rollout/invalid_action_rate": rate("invalid_actions", "steps"),
        "rollout/no_action_rate": rate("no_actions", "steps"),
        "rollout/prompt_tokens": rate("prompt_tokens", "steps"),
        "rollout/response_tokens": rate("response_tokens", "steps"),
        "rollout/truncated_response_rate": rate("truncated_responses", "steps"),
        "rollout/action_token_share": rate("action_tokens", "response_tokens"),
        "rollout/prefix_cache_hit_rate": rate("cached_tokens", "prompt_tokens"),
        "rollout/zero_variance_groups": rate("zero_variance_groups", "groups"),
        "rollout/all_won_groups": rate("all_won_groups", "groups"),
        "rollout/all_failed_groups": rate("all_failed_groups", "groups"),
        "rollout/hinted_episodes": float(total["hinted_episodes"]),
        "rollout/hinted_success": rate("hinted_successes", "hinted_episodes"),
        "staleness/mean": sum(ages) / len(ages) if ages else 0.0,
        "staleness/max": float(max(ages, default=0)),
        "batch/groups": float(total["groups"]),
        "batch/steps": float(total["steps"]),
        "batch/tokens": float(total["prompt_tokens"] + total["response_tokens"]),
    }
    for key in sorted(total):
        name = key.partition("/")[2]
        if key.startswith(_END):
            metrics[f"rollout/end_{name}"] = rate(key, "trajectories")
        elif key.startswith(_TASK_TYPE):
            metrics[f"rollout/success_by_task_type/{name}"] = rate(f"{_SUCCESS_OF}{name}", key)
        elif key.startswith(_EPISODES_WITH):
            metrics[f"episode/{name}"] = rate(f"{_EPISODE}{name}", key)
    return metrics


def episode_means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean of each metric of episodes over the trajectories that have it."""
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in trajectory.metrics.items():
            values.setdefault(name, []).append(value)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}

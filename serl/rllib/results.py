"""Metrics under RLlib's names, and as the nested dict that RLlib's `train` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# RLlib's name of a metric, and SERL's.
_RLLIB_NAMES: Mapping[str, str] = {
    "env_runners/episode_return_mean": "rollout/return",
    "env_runners/episode_len_mean": "rollout/episode_steps",
    "env_runners/num_episodes": "runners/episodes_finished",
    "env_runners/num_episodes_lifetime": "total/episodes_finished",
    "env_runners/num_env_steps_sampled": "runners/env_steps",
    "env_runners/num_env_steps_sampled_lifetime": "total/env_steps",
    "num_env_steps_sampled_lifetime": "total/env_steps",
    "learners/__all_modules__/num_env_steps_trained": "batch/steps",
    "learners/default_policy/total_loss": "learner/loss",
    "learners/default_policy/entropy": "learner/entropy",
    "learners/default_policy/default_optimizer_learning_rate": "learner/lr",
    "learners/default_policy/gradients_default_optimizer_global_norm": "learner/grad_norm",
}
# Counters are there once they have counted something.
_COUNTERS = ("runners/", "total/")


def under_rllib_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of ``metrics`` for which RLlib has a name of its own."""
    return {
        name: metrics.get(own, 0.0)
        for name, own in _RLLIB_NAMES.items()
        if own in metrics or own.startswith(_COUNTERS)
    }


def add_nested(result: dict[str, Any], metrics: Mapping[str, float]) -> None:
    """Puts each ``a/b/c`` at ``result["a"]["b"]["c"]``."""
    for name, value in metrics.items():
        *parts, last = name.split("/")
        inner = result
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value

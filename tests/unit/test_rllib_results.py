"""Metrics under RLlib's names."""

from __future__ import annotations

from typing import Any

from serl.rllib.results import add_nested, under_rllib_names


def test_a_metric_has_rllibs_name_beside_its_own() -> None:
    metrics = {"rollout/return": 2.5, "total/env_steps": 40.0, "learner/loss": 0.5, "time/iteration_s": 1.0}
    assert under_rllib_names(metrics) == {
        "env_runners/episode_return_mean": 2.5,
        "env_runners/num_episodes": 0.0,
        "env_runners/num_episodes_lifetime": 0.0,
        "env_runners/num_env_steps_sampled": 0.0,
        "env_runners/num_env_steps_sampled_lifetime": 40.0,
        "num_env_steps_sampled_lifetime": 40.0,
        "learners/default_policy/total_loss": 0.5,
    }


def test_metrics_join_what_rllib_has_at_the_same_place() -> None:
    result: dict[str, Any] = {"timers": {"a": 1}, "learners": {"of_a_callback": 2}, "weights_seq_no": 0}
    add_nested(result, {"learners/default_policy/entropy": 0.5, "weights_seq_no": 3.0})
    assert result == {
        "timers": {"a": 1},
        "learners": {"of_a_callback": 2, "default_policy": {"entropy": 0.5}},
        "weights_seq_no": 3.0,
    }

"""Evaluations, batch metrics, checkpoints' folders and the curve's mean, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from trajectories import make_step, make_trajectory

from envs.base import Task
from serl.algorithm_state import CheckpointError, read_algorithm_state, write_algorithm_state
from serl.batch.metrics import batch_metrics, group_sums
from serl.evaluation import evaluation_result, wilson_interval
from serl.run.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
)
from serl.run.evaluations import append_evaluation, read_evaluations, rename_former_file
from serl.types import Step, Trajectory, TrajectoryGroup
from tools.curve import moving_mean


def _step(version: int, valid: bool = True) -> Step:
    return make_step(
        [5, 6],
        version,
        prompt_ids=[1, 2, 3, 4],
        action_mask=[False, True],
        action_valid=valid,
        num_cached_tokens=1,
    )


def _trajectory(rollout_index: int, steps: list[Step], success: bool, task_type: str = "find") -> Trajectory:
    return make_trajectory(
        steps,
        10.0 if success else 0.0,
        "g0",
        rollout_index,
        task=Task(f"t{rollout_index}", task_type),
        metrics={"task_score": float(rollout_index)},
    )


def test_five_of_ten_successes_have_wilsons_interval() -> None:
    rate = wilson_interval(5, 10)
    assert rate.rate == 0.5
    # (0.5 + 1.920729 / 10) / 1.3841459 = 0.5, half width 1.959964 / 1.3841459 · √(0.025 + 0.0096036)
    assert rate.low == pytest.approx(0.236593, abs=1e-6)
    assert rate.high == pytest.approx(0.763407, abs=1e-6)


def test_no_success_still_has_a_wide_interval_and_no_task_has_all_of_it() -> None:
    none = wilson_interval(0, 10)
    assert (none.low, none.high) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)


def test_the_bounds_of_no_and_of_only_successes_are_exact_for_every_number_of_tasks() -> None:
    assert {wilson_interval(0, count).low for count in range(1, 400)} == {0.0}
    assert {wilson_interval(count, count).high for count in range(1, 400)} == {1.0}


def test_a_task_without_an_episode_counts_as_a_failure_of_the_evaluation() -> None:
    played = [_trajectory(0, [_step(3)], True), _trajectory(1, [_step(3, valid=False)] * 3, False, "heat")]
    result = evaluation_result(played, num_tasks=4, weights_seq_no=3, seconds=2.0)
    assert (result.overall.successes, result.overall.count, result.unfinished) == (1, 4, 2)
    assert {name: rate.count for name, rate in result.by_task_type.items()} == {"find": 1, "heat": 1}
    assert result.mean_steps == 2.0
    assert result.invalid_action_rate == 0.75
    assert result.outcomes == {"t0": True, "t1": False}
    assert result.mean_return == 5.0
    found = {name: value for name, value in result.metrics().items() if "/env_runners/" in name}
    assert found == {
        "evaluation/env_runners/num_episodes": 2.0,
        "evaluation/env_runners/episode_len_mean": 2.0,
        "evaluation/env_runners/episode_return_mean": 5.0,
    }


def test_evaluations_read_back_as_written_and_those_of_older_runs_without_outcomes(tmp_path: Path) -> None:
    result = evaluation_result([_trajectory(0, [_step(3)], True)], num_tasks=1, weights_seq_no=3, seconds=2.0)
    append_evaluation(tmp_path, result)
    file = tmp_path / "evaluations.jsonl"
    older = json.loads(file.read_text())
    assert older["iteration"] == 3
    del older["outcomes"], older["mean_return"]
    with file.open("a") as opened:
        opened.write(json.dumps(older) + "\n")
    assert read_evaluations(tmp_path) == [result, replace(result, outcomes={}, mean_return=None)]
    assert "evaluation/env_runners/episode_return_mean" not in read_evaluations(tmp_path)[1].metrics()


def test_evaluations_of_a_run_by_serl_0_1_are_read_and_followed_by_new_ones_under_the_present_name(
    tmp_path: Path,
) -> None:
    result = evaluation_result([_trajectory(0, [_step(3)], True)], num_tasks=1, weights_seq_no=3, seconds=2.0)
    # It wrote both counts; of a checkpoint that was only evaluated, "iteration" alone told its updates.
    line = json.dumps({"iteration": 3, **asdict(replace(result, weights_seq_no=0))})
    (tmp_path / "panels.jsonl").write_text(line + "\n")
    assert read_evaluations(tmp_path) == [result]
    rename_former_file(tmp_path)
    later = replace(result, weights_seq_no=4)
    append_evaluation(tmp_path, later)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.jsonl"]
    assert read_evaluations(tmp_path) == [result, later]
    rename_former_file(tmp_path)
    assert read_evaluations(tmp_path) == [result, later]


def test_a_run_without_evaluations_has_none(tmp_path: Path) -> None:
    rename_former_file(tmp_path)
    assert read_evaluations(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_an_evaluation_tells_the_environments_own_metrics_and_not_those_of_the_rollout() -> None:
    played = [_trajectory(number, [_step(3)], False) for number in (1, 4)]
    played[0].metrics["generation_seconds"] = 9.0
    result = evaluation_result(played, num_tasks=2, weights_seq_no=3, seconds=2.0)
    assert result.environment == {"task_score": 2.5}
    assert result.metrics()["evaluation/task_score"] == 2.5


def test_batch_metrics_count_steps_tokens_cache_hits_and_staleness() -> None:
    group = TrajectoryGroup(
        "g0",
        Task("t0", "find"),
        [
            _trajectory(0, [_step(4)], True),
            _trajectory(1, [_step(3, valid=False), _step(4), _step(5)], False),
        ],
    )
    metrics = batch_metrics([group_sums(group, has_variance=True)], group.trajectories, weights_seq_no=5)
    assert metrics["rollout/success"] == 0.5
    assert metrics["rollout/invalid_action_rate"] == 0.25
    assert metrics["rollout/prefix_cache_hit_rate"] == 0.25
    assert metrics["rollout/action_token_share"] == 0.5
    assert metrics["rollout/zero_variance_groups"] == 0.0
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (1.5, 2.0)
    assert metrics["batch/tokens"] == 24.0
    assert metrics["episode/task_score"] == 0.5


def test_only_complete_checkpoints_count_and_the_oldest_go(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for iteration in (1, 2, 3):
        folder = checkpoint_path(checkpoints, iteration)
        folder.mkdir(parents=True)
        if iteration != 3:
            write_algorithm_state(folder, {"weights_seq_no": iteration})
    (checkpoints / "iteration_000004.partial").mkdir()
    assert latest_checkpoint(tmp_path).name == "iteration_000002"
    remove_old_checkpoints(checkpoints, keep=1)
    assert [path.name for path in list_checkpoints(checkpoints)] == ["iteration_000002"]
    assert not (checkpoints / "iteration_000004.partial").exists()


def test_counters_of_a_checkpoint_by_serl_0_1_go_on_under_their_present_names(tmp_path: Path) -> None:
    counters = {"groups_admitted": 51, "groups_discarded_no_spread": 45, "groups_kept_without_spread": 2}
    state = {"iteration": 2, "weights_seq_no": 2, "buffer": {"counters": counters, "tasks": []}}
    write_algorithm_state(tmp_path, state)
    read = read_algorithm_state(tmp_path)
    assert read["weights_seq_no"] == 2
    assert read["buffer"]["counters"] == {
        "groups_admitted": 51,
        "groups_discarded_zero_variance": 45,
        "zero_variance_groups_kept": 2,
    }


def test_a_folder_without_a_readable_state_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_algorithm_state(tmp_path)
    (tmp_path / "algorithm.json").write_text(json.dumps({"weights_seq_no": 1})[:-2])
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_algorithm_state(tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        latest_checkpoint(tmp_path)


def test_the_curve_averages_over_the_last_values_only() -> None:
    assert moving_mean([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]

"""The whole system on this machine: real Ray, Serve, vLLM, engine, learner; started as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from closed_helpers import check_that_run_is_closed
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serl.algorithm_state import read_algorithm_state
from serl.run.checkpoint import list_checkpoints
from serl.run.evaluations import read_evaluations
from serl.run.metrics_reference import undescribed

_REPOSITORY = Path(__file__).resolve().parents[2]
_POLICY = _REPOSITORY / "serl" / "policies" / "tiny_alfworld"
_SMALL = (
    "name=end_to_end",
    "training.groups_per_batch=2",
    "training.group_size=4",
    "training.max_staleness=0",
    "env.max_steps=6",
    "evaluation.num_tasks=12",
    "evaluation.at_start=false",
    "checkpoint.interval=1",
    "checkpoint.keep=5",
    "learner.lr=0.001",
    "logging.credit=true",
)


def _serl_run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serl.run.cli", *arguments],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def _finish(process: subprocess.Popen[str], timeout_s: float = 400.0) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return output


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the console of a run of two iterations."""
    output = tmp_path_factory.mktemp("runs")
    console = _finish(
        _serl_run("experiments/quickstart.yaml", *_SMALL, "training.num_iterations=2", f"output_dir={output}")
    )
    (run_dir,) = output.iterdir()
    return run_dir, console


def test_two_iterations_write_metrics_evaluations_trajectories_and_checkpoints(
    two_iterations: tuple[Path, str],
) -> None:
    run_dir, console = two_iterations
    training = [row for row in _metrics(run_dir) if "learner/loss" in row]
    assert [row["iteration"] for row in training] == [1, 2]
    assert [row["batch/groups"] for row in training] == [2, 2]
    assert undescribed({name for row in _metrics(run_dir) for name in row} - {"iteration", "time"}) == []
    assert [evaluation.weights_seq_no for evaluation in read_evaluations(run_dir)] == [2]
    assert read_evaluations(run_dir)[0].overall.count == 12
    assert [path.name for path in list_checkpoints(run_dir / "checkpoints")] == [
        "iteration_000001",
        "iteration_000002",
    ]
    lines = (run_dir / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 16
    steps = [step for line in lines for step in json.loads(line)["steps"]]
    assert all(step["teacher"] for step in steps), "the learner reported nothing of some recorded steps"
    assert any(step["teacher"]["context"] for step in steps)
    assert len([line for line in console.splitlines() if line.startswith("[")]) == 2
    assert len(console.splitlines()) < 25, "the console shows more than its own lines"


def test_the_sampler_follows_the_learner_from_update_to_update(two_iterations: tuple[Path, str]) -> None:
    run_dir, _ = two_iterations
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    start, first, second = (
        load_file(folder / "model.safetensors")
        for folder in (_POLICY, checkpoints[0] / "policy", checkpoints[1] / "policy")
    )
    name = "model.embed_tokens.weight"
    assert (start[name] - first[name]).abs().max() > 1e-4
    assert (first[name] - second[name]).abs().max() > 1e-4
    # Without staleness the learner recomputes what the sampler reported, so the weights have landed.
    rows = [row for row in _metrics(run_dir) if "learner/loss" in row]
    assert len(rows) == 2 and max(row["learner/train_inference_mismatch"] for row in rows) < 1e-3


def test_a_resumed_run_continues_counters_curves_and_lambda(two_iterations: tuple[Path, str]) -> None:
    run_dir, _ = two_iterations
    full = "logging.max_trajectories_mib=0.001"
    console = _finish(_serl_run("--resume", str(run_dir), "training.num_iterations=3", full))
    training = [row for row in _metrics(run_dir) if "learner/loss" in row]
    assert console.count("trajectories.jsonl is full") == 1
    assert [row["records/trajectories_left_out"] for row in training] == [0, 0, 8]
    assert [row["iteration"] for row in training] == [1, 2, 3]
    assert [row["weights_seq_no"] for row in training] == [1, 2, 3]
    lambdas = [row["learner/effective_lambda"] for row in training]
    assert lambdas == sorted(lambdas, reverse=True) and len(set(lambdas)) == 3
    assert training[2]["total/episodes_finished"] >= training[1]["total/episodes_finished"] + 8
    assert training[2]["learner/train_inference_mismatch"] < 1e-3
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("learner/loss")] == [1, 2, 3]
    state = read_algorithm_state(list_checkpoints(run_dir / "checkpoints")[-1])
    assert state["weights_seq_no"] == 3


def test_a_run_is_closed_to_others_and_ctrl_c_saves_a_checkpoint_and_exits_cleanly(
    tmp_path: Path,
) -> None:
    everything = ("learner.num_learners=2", "cluster.dashboard=true", "training.num_iterations=500")
    process = _serl_run("experiments/quickstart.yaml", *_SMALL, *everything, f"output_dir={tmp_path}")
    deadline = time.monotonic() + 300.0
    while not list(tmp_path.glob("*/checkpoints/iteration_000002")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the second iteration did not end"
        time.sleep(0.2)
    (run_dir,) = tmp_path.iterdir()
    check_that_run_is_closed(process.pid, run_dir)
    process.send_signal(signal.SIGINT)
    output = _finish(process, timeout_s=120.0)
    assert "--resume" in output
    last = read_algorithm_state(list_checkpoints(run_dir / "checkpoints")[-1])
    assert last["weights_seq_no"] == _metrics(run_dir)[-1]["iteration"]
    policy = load_file(list_checkpoints(run_dir / "checkpoints")[-1] / "policy" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in policy.values())

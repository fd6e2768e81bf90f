"""The whole system on this machine: real Ray, Serve, vLLM, engine, learner; started as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from closed_helpers import check_that_run_is_closed
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from watched_helpers import check_that_run_is_watched

from serl.algorithm_state import read_algorithm_state
from serl.run.checkpoint import list_checkpoints
from serl.run.evaluations import read_evaluations
from serl.run.metrics_reference import undescribed

_REPOSITORY = Path(__file__).resolve().parents[2]
_POLICY = _REPOSITORY / "serl" / "policies" / "tiny_alfworld"
_SMALL = (
    "name=end_to_end",
    # So that what is done again is the same to the bit: each request draws from a seed of its own …
    "rollout.seeded_requests=true",
    # … and is computed alone and whole: which requests share a step of the engine, and which prefixes it has
    # cached, depends on timing, and sums of another shape may round in another way.
    "serving.max_num_seqs=1",
    "serving.engine_args.enable_prefix_caching=false",
    "training.groups_per_batch=2",
    "training.group_size=4",
    "training.max_staleness=0",
    "env.max_steps=6",
    "evaluation.num_tasks=12",
    "evaluation.at_start=false",
    "evaluation.interval=2",
    "checkpoint.interval=1",
    "checkpoint.keep=5",
    "learner.lr=0.001",
    "learner.lr_schedule=constant",  # the resumed run is to be shorter, and the linear one would end with it
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


def _training(run_dir: Path) -> list[dict[str, float]]:
    return [row for row in _metrics(run_dir) if "learner/loss" in row]


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the console of a run that was found closed to others, watched, and stopped by Ctrl-C."""
    output = tmp_path_factory.mktemp("runs")
    everything = ("learner.num_learners=2", "cluster.dashboard=true", "training.num_iterations=500")
    process = _serl_run("experiments/quickstart.yaml", *_SMALL, *everything, f"output_dir={output}")
    try:
        deadline = time.monotonic() + 400.0
        while not list(output.glob("*/checkpoints/iteration_000003")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the third iteration did not end"
            time.sleep(0.2)
        (run_dir,) = output.iterdir()
        check_that_run_is_closed(process.pid, run_dir)
        check_that_run_is_watched(run_dir, num_learners=2)
    finally:
        process.send_signal(signal.SIGINT)
    return run_dir, _finish(process, timeout_s=120.0)


def test_iterations_write_metrics_evaluations_trajectories_and_checkpoints(
    stopped_run: tuple[Path, str],
) -> None:
    run_dir, console = stopped_run
    training = _training(run_dir)
    assert [row["iteration"] for row in training] == list(range(1, len(training) + 1))
    assert [row["batch/groups"] for row in training] == [2] * len(training)
    assert undescribed({name for row in _metrics(run_dir) for name in row} - {"iteration", "time"}) == []
    assert [evaluation.weights_seq_no for evaluation in read_evaluations(run_dir)][0] == 2
    assert read_evaluations(run_dir)[0].overall.count == 12
    saved = [path.name for path in list_checkpoints(run_dir / "checkpoints")]
    assert saved == [f"iteration_{iteration + 1:06d}" for iteration in range(len(training))][-5:]
    lines = (run_dir / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8 * len(training)
    steps = [step for line in lines for step in json.loads(line)["steps"]]
    assert all(step["teacher"] for step in steps), "the learner reported nothing of some recorded steps"
    assert any(step["teacher"]["context"] for step in steps)
    assert len([line for line in console.splitlines() if line.startswith("[")]) == len(training)
    assert len(console.splitlines()) < 25 + len(training), "the console shows more than its own lines"


def test_ctrl_c_saves_the_newest_policy_and_exits_cleanly(stopped_run: tuple[Path, str]) -> None:
    run_dir, console = stopped_run
    assert "--resume" in console
    last = list_checkpoints(run_dir / "checkpoints")[-1]
    assert read_algorithm_state(last)["weights_seq_no"] == _metrics(run_dir)[-1]["iteration"]
    policy = load_file(last / "policy" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in policy.values())


def test_the_sampler_follows_the_learner_from_update_to_update(stopped_run: tuple[Path, str]) -> None:
    run_dir, _ = stopped_run
    policies = [folder / "policy" for folder in list_checkpoints(run_dir / "checkpoints")]
    weights = [load_file(folder / "model.safetensors") for folder in (_POLICY, *policies)]
    name = "model.embed_tokens.weight"
    for before, after in pairwise(weights):
        assert (before[name] - after[name]).abs().max() > 1e-4
    # Without staleness the learner recomputes what the sampler reported, so the weights have landed.
    rows = _training(run_dir)
    assert len(rows) >= 3 and max(row["learner/train_inference_mismatch"] for row in rows) < 1e-3


def test_an_update_done_again_from_the_checkpoint_before_gives_the_same_weights_and_curves(
    stopped_run: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir, _ = stopped_run
    *_, newest = list_checkpoints(run_dir / "checkpoints")
    first = shutil.move(newest, tmp_path / "first")
    done = _training(run_dir)
    last = len(done)
    full = "logging.max_trajectories_mib=0.001"
    console = _finish(_serl_run("--resume", str(run_dir), f"training.num_iterations={last}", full))
    again = list_checkpoints(run_dir / "checkpoints")[-1]
    files = sorted(file.relative_to(again) for file in again.rglob("*.safetensors"))
    assert len(files) == 1 + 2 * 4  # the policy; weights, teacher and two moments of each learner
    for file in files:
        own, other = load_file(first / file), load_file(again / file)
        assert own.keys() == other.keys()
        assert [name for name in own if not own[name].equal(other[name])] == [], file

    training = _training(run_dir)
    assert console.count("trajectories.jsonl is full") == 1
    assert [row["records/trajectories_left_out"] for row in training] == [0] * (last - 1) + [8]
    assert [row["iteration"] for row in training] == list(range(1, last + 1))
    assert [row["weights_seq_no"] for row in training] == list(range(1, last + 1))
    assert training[-1]["learner/loss"] == done[-1]["learner/loss"]
    lambdas = [row["learner/effective_lambda"] for row in training]
    assert lambdas == sorted(lambdas, reverse=True) and len(set(lambdas)) == last
    assert training[-1]["total/episodes_finished"] >= training[-2]["total/episodes_finished"] + 8
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("learner/loss")] == list(range(1, last + 1))
    assert read_algorithm_state(again)["weights_seq_no"] == last

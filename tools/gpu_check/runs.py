"""Whole runs by `serl-run`: the quickstart's first updates, and more of them from a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.gpu_check.policy import TOLERANCE
from tools.gpu_check.results import Report, require

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"
_TIMEOUT_S = 300.0
_UPDATES, _MORE_UPDATES = 2, 3
_LAST_LINES = 3
SHORT = (
    "training.group_size=4",
    "training.groups_per_batch=8",
    "env.max_steps=8",
    "training.filter_groups=false",
    # Every token that is trained then tells how far learner and engine agree about the same weights.
    "training.max_staleness=0",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "checkpoint.interval=1",
    "cluster.dashboard=false",
    "logging.progress_bar=false",
)
ON_ONE_GPU = (
    "model.dtype=bfloat16",
    "learner.num_gpus_per_learner=0.4",
    "serving.num_gpus_per_replica=0.4",
    "serving.gpu_memory_utilization=0.3",
    "serving.weight_transfer=ipc",
)
_MISMATCH = "learner/train_inference_mismatch_on_policy"


def quickstart(report: Report, folder: Path, num_gpus: int) -> None:
    """Learner and replica on one GPU, or on processors, then the same run resumed."""
    overrides = [*SHORT, *(ON_ONE_GPU if num_gpus else ()), f"output_dir={folder / 'runs'}"]
    seconds = _serl_run(str(QUICKSTART), *overrides, f"training.num_iterations={_UPDATES}")
    (run,) = (folder / "runs").iterdir()
    first = _metrics(run)
    require(len(first) == _UPDATES, f"{len(first)} of {_UPDATES} updates are in metrics.jsonl")
    _check_mismatch(first, num_gpus)
    report.passed(
        "quickstart",
        seconds=seconds,
        sampled_tokens_per_s=first[-1]["throughput/response_tokens_per_s"],
        learner_tokens_per_s=first[-1]["learner/learner_tokens_per_s"],
        broadcast_s=first[-1]["broadcast/seconds_transport"],
        mismatch=first[-1][_MISMATCH],
    )
    _serl_run("--resume", str(run), f"training.num_iterations={_MORE_UPDATES}")
    resumed = _metrics(run)
    iterations = [line["iteration"] for line in resumed]
    require(iterations == list(range(1, _MORE_UPDATES + 1)), f"iterations after the resumption: {iterations}")
    require(resumed[:_UPDATES] == first, "the metrics of updates before the checkpoint have changed")
    _check_mismatch(resumed, num_gpus)
    report.passed("checkpoint and resume", updates=len(resumed), mismatch=resumed[-1][_MISMATCH])


def _serl_run(*arguments: str) -> float:
    """Its seconds. Raises RuntimeError with what it said, if it fails."""
    started = time.monotonic()
    command = [sys.executable, "-m", "serl.run.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if ended.returncode:
        said = f"{ended.stdout}\n{ended.stderr}".strip().splitlines()
        # Where the traceback is comes after what went wrong.
        last_words = "; ".join(line for line in said[-_LAST_LINES:] if line) or "it said nothing"
        raise RuntimeError(f"serl-run ended with {ended.returncode}: {last_words}")
    return time.monotonic() - started


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _check_mismatch(metrics: list[dict[str, Any]], num_gpus: int) -> None:
    tolerance = TOLERANCE["bfloat16" if num_gpus else "float32"]
    worst = max(line[_MISMATCH] for line in metrics)
    require(
        worst < tolerance, f"learner and engine differ by {worst:.3g} nats over the newest weights' tokens"
    )

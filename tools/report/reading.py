"""A sweep's folder (see `tools.sweep.runs`) as runs with their metrics and evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.evaluation import EvaluationResult
from serl.run.evaluations import read_evaluations
from serl.run.metrics_writer import METRICS
from serl.run.run_dir import CONFIG
from tools.sweep.runs import COMMANDS, Attempt, attempts, finished_run, run_dirs

# What SERL 0.1 called the metrics that a report shows.
_FORMER_NAMES = {
    "learner/seconds_samples": "learner/seconds_plan",
    "learner/sampler_logprob_gap": "learner/train_inference_mismatch",
    "learner/sampler_logprob_gap_fresh": "learner/train_inference_mismatch_on_policy",
    "learner/teacher_abs_delta_mean": "learner/teacher_abs_log_ratio_mean",
    "learner/teacher_delta_mean": "learner/teacher_log_ratio_mean",
    "learner/teacher_drift": "learner/teacher_log_ratio_without_context",
    "learner/teacher_feedback_effect": "learner/teacher_context_effect",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. ``rows`` are its training iterations' metrics, in order."""

    arm: str
    seed: int
    experiment: ExperimentConfig
    versions: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluations: list[EvaluationResult]

    @property
    def final_evaluation(self) -> EvaluationResult | None:
        return self.evaluations[-1] if self.evaluations else None

    def values(self, name: str) -> list[tuple[int, float]]:
        """``(iteration, value)`` of the metric ``name`` wherever it is a number."""
        return [(row["iteration"], row[name]) for row in self.rows if row.get(name) is not None]

    def mean(self, name: str) -> float | None:
        numbers = [value for _, value in self.values(name)]
        return sum(numbers) / len(numbers) if numbers else None

    def total(self, name: str) -> float:
        return sum(value for _, value in self.values(name))

    def until(self, name: str, iteration: int) -> float:
        """The sum of ``name`` over the iterations up to ``iteration``."""
        return sum(value for at, value in self.values(name) if at <= iteration)


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A run that has no result: ``iteration`` updates of ``num_iterations`` were made."""

    arm: str
    seed: int
    iteration: int
    num_iterations: int | None
    attempts: list[Attempt]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs in the order of arms and seeds; ``commands`` are those that made the sweep."""

    runs: list[Run]
    unfinished: list[UnfinishedRun]
    retried: list[tuple[str, int, list[Attempt]]]
    commands: list[str]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        return [run for run in self.runs if run.arm == arm]


def read_sweep(folder: Path) -> Sweep:
    """Everything below ``folder``; raises FileNotFoundError if it is no folder of a sweep."""
    seed_folders = sorted(folder.glob("*/seed_*"), key=lambda path: (path.parent.name, _seed(path)))
    if not seed_folders:
        raise FileNotFoundError(f"{folder} holds no sweep: ARM/seed_N folders are expected in it")
    runs, unfinished, retried = [], [], []
    for path in seed_folders:
        arm, seed, tried = path.parent.name, _seed(path), attempts(path)
        run_dir = finished_run(path)
        if run_dir is None:
            unfinished.append(_unfinished(arm, seed, path, tried))
            continue
        runs.append(_read_run(arm, seed, run_dir))
        if len(tried) > 1:
            retried.append((arm, seed, tried))
    file = folder / COMMANDS
    commands = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return Sweep(runs, unfinished, retried, list(dict.fromkeys(commands)))


def _seed(path: Path) -> int:
    return int(path.name.removeprefix("seed_"))


def _read_run(arm: str, seed: int, run_dir: Path) -> Run:
    return Run(
        arm=arm,
        seed=seed,
        experiment=load_experiment(run_dir / CONFIG, recorded=True),
        versions=json.loads((run_dir / "versions.json").read_text(encoding="utf-8")),
        rows=list(_training_rows(run_dir / METRICS)),
        evaluations=read_evaluations(run_dir),
    )


def _training_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of updates; those of evaluations have the iteration of the update before."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "weights_seq_no" in row:
            yield _under_present_names(row)


def _under_present_names(row: dict[str, Any]) -> dict[str, Any]:
    renamed = {_FORMER_NAMES.get(name, name): value for name, value in row.items()}
    share_with_variance = renamed.pop("rollout/groups_with_spread", None)
    if share_with_variance is not None:
        renamed["rollout/zero_variance_groups"] = 1.0 - share_with_variance
    return renamed


def _unfinished(arm: str, seed: int, path: Path, tried: list[Attempt]) -> UnfinishedRun:
    found = run_dirs(path)
    if not found:
        return UnfinishedRun(arm, seed, 0, None, tried)
    metrics = found[-1] / METRICS
    iterations = [row["iteration"] for row in _whole_rows(metrics)] if metrics.exists() else []
    wanted = load_experiment(found[-1] / CONFIG, recorded=True).training.num_iterations
    return UnfinishedRun(arm, seed, max(iterations, default=0), wanted, tried)


def _whole_rows(metrics: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file whose last line may be cut off."""
    for line in metrics.read_text(encoding="utf-8").splitlines():
        if line.endswith("}"):
            yield json.loads(line)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stood when it played an evaluation: what it had cost by then, and its success rate."""

    iteration: int
    env_steps: float
    hours: float
    success: float


def progress(run: Run) -> list[Progress]:
    """One entry an evaluation. Environment steps and hours are those of training iterations alone."""
    return [
        Progress(
            iteration=evaluation.weights_seq_no,
            env_steps=run.until("runners/env_steps", evaluation.weights_seq_no),
            hours=run.until("time/iteration_s", evaluation.weights_seq_no) / 3600.0,
            success=evaluation.overall.rate,
        )
        for evaluation in run.evaluations
    ]

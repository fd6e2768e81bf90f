"""A sweep's folder (see `tools.sweep.runs`) as runs with their metrics and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.evaluation import EvaluationResult
from serl.run.evaluations import read_evaluations
from serl.run.json_lines import parse_line
from serl.run.metrics_writer import METRICS, read_metrics
from serl.run.run_dir import CONFIG
from tools.sweep.runs import COMMANDS, Attempt, attempts, finished_run, last_iteration, run_dirs

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
_VERSIONS = ("packages", "git_commit", "git_changed_files", "cpus", "platform", "python")


class UnreadableSweepError(ValueError):
    """A folder that is no sweep, or a file of one that cannot be read."""


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
    """Everything below ``folder``.

    Lines of metrics and evaluations that are damaged are left out, with a warning. Raises
    UnreadableSweepError if it is no folder of a sweep or a file of a run cannot be read, ConfigError for a
    run's config.
    """
    found = [path for path in folder.glob("*/seed_*") if path.name.removeprefix("seed_").isdecimal()]
    seed_folders = sorted(found, key=lambda path: (path.parent.name, _seed(path)))
    if not seed_folders:
        raise UnreadableSweepError(f"{folder} holds no sweep: ARM/seed_N folders are expected in it")
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
    commands = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return Sweep(runs, unfinished, retried, list(dict.fromkeys(commands)))


def _seed(path: Path) -> int:
    return int(path.name.removeprefix("seed_"))


def _read_run(arm: str, seed: int, run_dir: Path) -> Run:
    return Run(
        arm=arm,
        seed=seed,
        experiment=load_experiment(run_dir / CONFIG, recorded=True),
        versions=_read_versions(run_dir / "versions.json"),
        # Rows of updates; those of evaluations have the iteration of the update before.
        rows=[_under_present_names(row) for row in read_metrics(run_dir) if "weights_seq_no" in row],
        evaluations=read_evaluations(run_dir),
    )


def _read_versions(file: Path) -> dict[str, Any]:
    try:
        versions = parse_line(file.read_bytes(), dict[str, Any])
    except (OSError, ValueError) as error:
        raise UnreadableSweepError(f"{file}: {error}") from error
    missing = [name for name in _VERSIONS if name not in versions]
    if missing or not isinstance(versions["packages"], dict):
        raise UnreadableSweepError(f"{file}: no {', '.join(missing) or 'packages'} in it")
    return versions


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
    wanted = load_experiment(found[-1] / CONFIG, recorded=True).training.num_iterations
    return UnfinishedRun(arm, seed, last_iteration(found[-1] / METRICS), wanted, tried)


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

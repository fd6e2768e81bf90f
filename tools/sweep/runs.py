"""What a sweep's folder holds, read from the runs themselves.

    OUT/ARM/seed_N/
      ARM-20260131-120000/   the run directory of serl-run; another one only if the first left no checkpoint
      attempt_1.log          what serl-run printed
      attempts.jsonl         one object an attempt that ended (`Attempt`)
      lock                   held by whoever runs it
    OUT/commands.txt         the sweep's command lines

Whether a run is finished is read from its metrics and evaluations and nowhere noted, so it cannot be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.run.checkpoint import list_checkpoints
from serl.run.evaluations import evaluations_file
from serl.run.json_lines import read_lines, row_of
from serl.run.metrics_writer import METRICS
from serl.run.resume import check_resumable
from serl.run.run_dir import CONFIG

Outcome = Literal["finished", "failed", "over the limit", "interrupted"]
ATTEMPTS = "attempts.jsonl"
COMMANDS = "commands.txt"


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration of a sweep; its name is the file's."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """An arm with a seed; everything about it is below ``folder``."""

    arm: Arm
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.arm.name} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of serl-run that ended. ``started`` is Unix time; ``message`` says why it did not finish."""

    outcome: Outcome
    command: list[str]
    log: str
    started: float
    seconds: float
    exit_code: int | None
    message: str


_ATTEMPT = TypeAdapter(Attempt)


def find_arms(paths: Sequence[Path]) -> list[Arm]:
    """The ``.yaml`` files of folders (not of folders in them, nor ``_….yaml``), and files named themselves.

    Raises ConfigError for a path that does not exist, a folder without arms, or two arms of one name.
    """
    files: list[Path] = []
    for path in paths:
        found = (
            [file for file in sorted(path.glob("*.yaml")) if not file.name.startswith("_")]
            if path.is_dir()
            else [path] * path.is_file()
        )
        if not found:
            raise ConfigError([f"{path}: no such file, or a folder without arms (*.yaml)"])
        files += found
    arms = [Arm(file.stem, file.absolute()) for file in files]
    for arm in arms:
        if sum(other.name == arm.name for other in arms) > 1:
            raise ConfigError([f"more than one arm is called {arm.name!r}: {arm.path}"])
    return arms


def plan_runs(arms: Sequence[Arm], seeds: Sequence[int], out: Path) -> list[PlannedRun]:
    """Every arm with every seed, seed by seed: a sweep that is cut short has whole seeds of all arms."""
    return [
        PlannedRun(arm, seed, out.absolute() / arm.name / f"seed_{seed}") for seed in seeds for arm in arms
    ]


def run_dirs(folder: Path) -> list[Path]:
    """The run directories below ``folder``, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def last_iteration(file: Path) -> int:
    """The greatest iteration in a ``.jsonl`` file of a run, 0 for none; damaged lines are left out."""
    return max((row["iteration"] for row in read_lines(file, row_of)), default=0)


def is_finished(run_dir: Path) -> bool:
    """Whether the run made all its updates and played its last evaluation."""
    experiment = load_experiment(run_dir / CONFIG, recorded=True)
    wanted = experiment.training.num_iterations
    if last_iteration(run_dir / METRICS) < wanted:
        return False
    return not experiment.evaluation.at_end or last_iteration(evaluations_file(run_dir)) >= wanted


def finished_run(folder: Path) -> Path | None:
    return next((path for path in run_dirs(folder) if is_finished(path)), None)


def resumable_run(folder: Path) -> Path | None:
    """The newest unfinished run that has a checkpoint."""
    found = [path for path in run_dirs(folder) if list_checkpoints(path / "checkpoints")]
    return found[-1] if found else None


def attempts(folder: Path) -> list[Attempt]:
    return read_lines(folder / ATTEMPTS, _ATTEMPT.validate_python)


def add_attempt(folder: Path, attempt: Attempt) -> None:
    with (folder / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(attempt)) + "\n")


def contradictions(run: PlannedRun, experiment: ExperimentConfig) -> Iterator[str]:
    """What keeps earlier run directories from being runs of ``experiment``: other settings.

    Where a sweep was when a run was made says nothing: its folder may have been moved.
    """
    for run_dir in run_dirs(run.folder):
        try:
            recorded = load_experiment(run_dir / CONFIG, recorded=True)
            here = {"output_dir": experiment.output_dir}
            changes = check_resumable(recorded.model_copy(update=here), experiment)
        except ConfigError as error:
            changes = str(error).splitlines()
        for change in changes:
            yield f"{run_dir} has other settings than {run.arm.path}: {change}; use another --out"

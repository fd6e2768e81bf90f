"""The folder that a run leaves behind.

    runs/NAME-20260131-120000/
      config.yaml         the experiment, resolved: every key, defaults included
      versions.json       packages, Python, platform, git commit, the command
      metrics.jsonl       one object a write: "iteration", "time" (Unix seconds) and the metrics
      trajectories.jsonl  trajectories to look at, one object each (serl.run.records)
      evaluations.jsonl        evaluations (written by serl.run.train)
      judge/answers.jsonl what a judge answered (serl.hindsight.judge.cache)
      tensorboard/        the same metrics as curves
      checkpoints/        serl.run.checkpoint
      logs/               engines and servers

Every line of a ``.jsonl`` file directly in the folder has an "iteration"; a run that is resumed at
iteration N drops the lines of later ones, and its TensorBoard events from N + 1 on replace the earlier ones.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from serl.config import ExperimentConfig

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CONFIG = "config.yaml"


class RunDir:
    """A run's folder, open for writing. ``metrics`` must be started before it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsWriter(path)

    @classmethod
    def create(cls, experiment: ExperimentConfig, purpose: str = "") -> RunDir:
        """A new folder ``OUTPUT_DIR/NAME[-PURPOSE]-TIMESTAMP``; raises OSError if it cannot be made."""
        name = "-".join(part for part in (experiment.name, purpose, time.strftime("%Y%m%d-%H%M%S")) if part)
        parent = Path(experiment.output_dir).expanduser().absolute()
        parent.mkdir(parents=True, exist_ok=True)
        run_dir = cls(_make_unused(parent, name))
        run_dir._begin(experiment)
        return run_dir

    @classmethod
    def reopen(cls, path: Path, experiment: ExperimentConfig) -> RunDir:
        """An existing run to be resumed; its former config and versions are kept beside the new ones."""
        for name in (CONFIG, "versions.json"):
            file = path / name
            if file.exists():
                file.rename(_unused_name(file))
        run_dir = cls(path.absolute())
        run_dir._begin(experiment)
        return run_dir

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def _begin(self, experiment: ExperimentConfig) -> None:
        self.logs.mkdir(exist_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        (self.path / CONFIG).write_text(config_yaml(experiment), encoding="utf-8")
        (self.path / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n", encoding="utf-8")


class MetricsWriter:
    """Writes metrics as JSON lines and as TensorBoard curves."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._board: SummaryWriter | None = None

    def start(self, iteration: int) -> None:
        """Goes on after ``iteration`` updates (0: a new run); what was written of later ones is dropped."""
        # tensorboardX imports torch, for which checking a config should not wait.
        from tensorboardX import SummaryWriter

        for file in self._run_dir.glob("*.jsonl"):
            drop_lines_after(file, iteration)
        # Event files are named after the second they began in: two of one second would be one file.
        self._board = SummaryWriter(
            str(self._run_dir / "tensorboard"),
            purge_step=iteration + 1 if iteration else None,
            filename_suffix=f".{iteration:08d}",
        )

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Appends one line. NaN and infinities are null in JSON and stay what they are in TensorBoard."""
        if self._board is None:
            raise RuntimeError("MetricsWriter.start was not called")
        record = {"iteration": iteration, "time": round(time.time(), 3)}
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        with (self._run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_json_line(record | finite))
        for name, value in metrics.items():
            self._board.add_scalar(name, float(value), iteration)
        self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None


def drop_lines_after(file: Path, iteration: int) -> None:
    """Keeps the lines of a JSON-lines file up to ``iteration``; an unfinished last line goes too."""
    # Bytes, and not splitlines(): JSON leaves U+2028 and its like in strings as they are.
    *lines, unfinished = file.read_bytes().split(b"\n")
    kept = [line for line in lines if (found := _iteration_of(line)) is not None and found <= iteration]
    if len(kept) == len(lines) and not unfinished:
        return
    replacement = file.with_suffix(".jsonl.new")
    replacement.write_bytes(b"".join(line + b"\n" for line in kept))
    replacement.replace(file)


def _iteration_of(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["iteration"])
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def config_yaml(experiment: ExperimentConfig) -> str:
    """The experiment as YAML that `serl.config.load` reads back to the same experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def versions() -> dict[str, Any]:
    """What the run runs on: command, Python, platform, git commit (None outside a checkout), packages."""
    packages = {found.metadata["Name"]: found.version for found in distributions()}
    return {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": len((_git("status", "--porcelain") or "").splitlines()),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _make_unused(parent: Path, name: str) -> Path:
    """A new folder called ``name``, or ``name-2`` and so on if another run began in the same second."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _unused_name(file: Path) -> Path:
    number = 0
    while (name := file.with_name(f"{file.stem}.{number}{file.suffix}")).exists():
        number += 1
    return name

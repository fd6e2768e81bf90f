"""The folder that a run leaves behind.

    runs/NAME-20260131-120000/
      config.yaml         the experiment, resolved: every key, defaults included
      versions.json       packages, Python, platform, git commit, the command
      metrics.jsonl       one object a write: "iteration", "time" (Unix seconds) and the metrics
      trajectories.jsonl  trajectories to look at, one object each (serl.run.records)
      evaluations.jsonl   evaluations, one object each (serl.run.evaluations)
      failures.jsonl      what failed without ending the run (serl.run.failures)
      judge/answers.jsonl what a judge answered (serl.hindsight.judge.cache)
      tensorboard/        the same metrics as curves
      checkpoints/        serl.run.checkpoint
      logs/               engines and servers
      prometheus_targets.json  whom Prometheus asks for metrics, while the run lives (serl.run.ray_metrics)
      writer.json         the process that writes the run, while it does (serl.run.writer_lock)

Every line of a ``.jsonl`` file directly in the folder has an "iteration": the number of learner updates so
far, which is the ``weights_seq_no`` of the weights they left. A run that resumes from iteration N drops the
lines of later ones, but for failures, and its TensorBoard events from N + 1 on replace the earlier ones.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from serl.config import ExperimentConfig
from serl.durable_files import json_bytes, write_atomically
from serl.run.evaluations import rename_former_file
from serl.run.metrics_writer import MetricsWriter
from serl.run_folder import CONFIG, config_yaml, create_run_folder


class RunDir:
    """A run's folder, open for writing. ``metrics`` must be started before it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsWriter(path)

    @classmethod
    def create(cls, experiment: ExperimentConfig, purpose: str = "") -> RunDir:
        """A new folder ``OUTPUT_DIR/NAME[-PURPOSE]-TIMESTAMP``; raises OSError if it cannot be made.

        Raises UnknownPathError too.
        """
        run_dir = cls(create_run_folder(experiment, purpose))
        run_dir._begin(experiment)
        return run_dir

    @classmethod
    def reopen(cls, path: Path, experiment: ExperimentConfig) -> RunDir:
        """An existing folder, in which a run is resumed or starts anew.

        A former config and versions are kept beside the new ones.
        """
        rename_former_file(path)
        run_dir = cls(path.absolute())
        run_dir._begin(experiment)
        return run_dir

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def driver_log(self) -> Path:
        return self.logs / "driver.log"

    def _begin(self, experiment: ExperimentConfig) -> None:
        self.logs.mkdir(exist_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        _write_keeping_former(self.path / CONFIG, config_yaml(experiment).encode())
        _write_keeping_former(self.path / "versions.json", json_bytes(versions()))


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
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()


def _write_keeping_former(file: Path, content: bytes) -> None:
    """There is always one of them under the name, whenever this process ends."""
    if file.exists():
        if file.read_bytes() == content:
            return
        shutil.copy2(file, _unused_name(file))
    write_atomically(file, content)


def _unused_name(file: Path) -> Path:
    number = 0
    while (name := file.with_name(f"{file.stem}.{number}{file.suffix}")).exists():
        number += 1
    return name

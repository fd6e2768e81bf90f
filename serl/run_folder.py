"""A run's folder, as far as everybody knows it: its name, and the experiment in it."""

from __future__ import annotations

import time
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.paths import expanded_path
from serl.config.yaml_files import dump_yaml

CONFIG = "config.yaml"


def checkpoint_path(checkpoints_dir: Path, iteration: int) -> Path:
    return checkpoints_dir / f"iteration_{iteration:06d}"


def create_run_folder(experiment: ExperimentConfig, purpose: str = "") -> Path:
    """A new folder ``OUTPUT_DIR/NAME[-PURPOSE]-TIMESTAMP``; raises OSError if it cannot be made.

    Raises UnknownPathError too.
    """
    name = "-".join(part for part in (experiment.name, purpose, time.strftime("%Y%m%d-%H%M%S")) if part)
    parent = expanded_path(experiment.output_dir)
    parent.mkdir(parents=True, exist_ok=True)
    return _make_unused(parent, name)


def config_yaml(experiment: ExperimentConfig) -> str:
    """The experiment as YAML that `serl.config.load` reads back to the same experiment."""
    return dump_yaml(experiment.model_dump(mode="json"))


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

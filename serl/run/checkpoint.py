"""Checkpoint folders: written beside their final name, renamed when complete, the oldest removed.

``iteration_000012/``, saved after the twelfth update, holds ``policy/`` (Hugging Face layout), ``learner/``
(teacher and optimizer) and, written last, ``algorithm.json`` (counters, sampler position).
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from serl.algorithm_state import ALGORITHM_STATE, CheckpointError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"iteration_(\d+)")


def checkpoint_path(checkpoints_dir: Path, iteration: int) -> Path:
    return checkpoints_dir / f"iteration_{iteration:06d}"


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    if not checkpoints_dir.is_dir():
        return []
    found = [path for path in checkpoints_dir.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(path for path in found if (path / ALGORITHM_STATE).is_file())


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest complete checkpoint below ``run_dir``; raises CheckpointError if there is none."""
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    if not checkpoints:
        raise CheckpointError(f"{run_dir} holds no complete checkpoint below checkpoints/")
    return checkpoints[-1]


def remove_old_checkpoints(checkpoints_dir: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, and what interrupted saves left."""
    for path in list_checkpoints(checkpoints_dir)[:-keep]:
        shutil.rmtree(path)
    for path in checkpoints_dir.glob("*.partial"):
        logger.warning("removing the incomplete checkpoint %s", path)
        shutil.rmtree(path)

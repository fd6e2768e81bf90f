"""What a run is resumed from, whether it has anything left to do, and which keys may change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serl.algorithm_state import ALGORITHM_STATE, CheckpointError, read_algorithm_state
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.wording import shown
from serl.run.checkpoint import DamagedCheckpoint, find_checkpoint, set_aside
from serl.run.evaluations import evaluations_file, read_evaluations
from serl.run.metrics_writer import drop_lines_after
from serl.run.preflight.output import is_deleted_by_ray, why_not_kept
from serl.run.run_dir import CONFIG
from serl.run.writer_lock import LOCK, RECORD

# The checkpoint holds what follows from these: weights, task order, groups, optimizer state.
FIXED_KEYS = (
    "seed",
    "model.path",
    "model.lora.rank",
    "model.lora.alpha",
    "model.lora.target_modules",
    "env.name",
    "env.args",
    "env.train_split",
    "training.group_size",
)


# What a run directory may hold before its config is written.
_NEUTRAL_NAMES = {LOCK, RECORD, "lost+found"}


def require_run_dir(folder: Path, new: bool) -> None:
    """Raises ConfigError unless ``folder`` is a run's or, if ``new``, can become one.

    Lines of its files will be dropped, so a folder of anything else is refused.
    """
    if is_deleted_by_ray(folder):
        raise ConfigError([why_not_kept(folder)])
    if not folder.exists() and new:
        return
    if not folder.is_dir():
        raise ConfigError([f"{folder}: no such run directory"])
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - _NEUTRAL_NAMES
    if not names & {CONFIG, "checkpoints"} and not (new and not names):
        found = f"holds {min(names)!r} and no {CONFIG}" if names else "is empty"
        raise ConfigError([f"{folder} {found}: it is no run directory"])


def checkpoint_to_resume(
    run_dir: Path,
    start: bool,
    say: Callable[[str], object] = print,
    fetch: Callable[[list[DamagedCheckpoint]], Path | None] = lambda damaged: None,
) -> Path | None:
    """The newest sound checkpoint, after ``say`` was told of each newer one, which is set aside.

    Where there is none, what ``fetch`` brings from elsewhere. None if that is nothing and the run may
    ``start``. Raises CheckpointError if it may not, or if there are only damaged ones: nobody wants such a
    run to start anew by itself.
    """
    checkpoint, damaged = find_checkpoint(run_dir)
    if checkpoint is None and (fetched := fetch(damaged)) is not None:
        return fetched
    was_complete = [found for found in damaged if (found.path / ALGORITHM_STATE).exists()]
    if checkpoint is None and (was_complete or not start):
        reasons = "".join(f"\n{found.reason}" for found in damaged)
        raise CheckpointError(f"{run_dir} holds no complete checkpoint below checkpoints/{reasons}")
    set_aside(damaged, checkpoint.name if checkpoint else "the beginning", say)
    return checkpoint


def is_complete(experiment: ExperimentConfig, run_dir: Path, checkpoint: Path) -> bool:
    """Whether every iteration and the evaluation at the end are done."""
    iteration = read_algorithm_state(checkpoint)["weights_seq_no"]
    if iteration < experiment.training.num_iterations:
        return False
    if not experiment.evaluation.at_end:
        return True
    if evaluations_file(run_dir).exists():
        # A process that was killed may have left half a line.
        drop_lines_after(evaluations_file(run_dir), iteration)
    return iteration in {found.weights_seq_no for found in read_evaluations(run_dir)}


def check_resumable(recorded: ExperimentConfig, resumed: ExperimentConfig) -> list[str]:
    """The keys that changed, as ``key: old -> new``; raises ConfigError for one that must not change."""
    before, after = dict(_leaves(recorded.model_dump())), dict(_leaves(resumed.model_dump()))
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    refused = [
        f"{key} = {shown(after.get(key))} contradicts the run to be resumed: {shown(before.get(key))}"
        for key in changed
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED_KEYS)
    ]
    if refused:
        raise ConfigError(refused)
    return [f"{key}: {shown(before.get(key))} -> {shown(after.get(key))}" for key in changed]


def check_evaluable(experiment: ExperimentConfig, checkpoint: Path) -> None:
    """Raises ConfigError if the adapters in ``checkpoint`` are others than the experiment's.

    Raises CheckpointError if what it says of them cannot be read; a copy without its learners' part is taken
    as it is.
    """
    record_file = checkpoint / "learner" / "learner.json"
    if not record_file.is_file():
        return
    try:
        saved = json.loads(record_file.read_text(encoding="utf-8")).get("lora")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{record_file} is damaged: {error}") from error
    own = experiment.model.lora and experiment.model.lora.fixed
    if own != saved:
        text = f"model.lora = {json.dumps(own)} contradicts {checkpoint}, which was saved with "
        raise ConfigError([text + json.dumps(saved)])


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

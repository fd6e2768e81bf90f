"""Where the run would write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.paths import UnknownPathError, blocked_by, expanded_path
from serl.run.preflight.finding import Finding

# Below it a node of Ray keeps what it unpacks for jobs, working directories too; it is removed after its use.
RUNTIME_RESOURCES = "runtime_resources"


def examine_output(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Whether ``output_dir`` can be written, and lasts."""
    try:
        folder = expanded_path(experiment.output_dir)
    except UnknownPathError as error:
        yield Finding("wrong", "output", f"output_dir = {error}")
        return
    if is_deleted_by_ray(folder):
        yield Finding("wrong", "output", f"output_dir = {experiment.output_dir!r}: {why_not_kept(folder)}")
    elif blocked := blocked_by(folder):
        yield Finding("wrong", "output", f"output_dir = {experiment.output_dir!r}: cannot write in {blocked}")


def is_deleted_by_ray(folder: Path) -> bool:
    """Whether ``folder`` is below one that Ray has unpacked for a submitted job."""
    return RUNTIME_RESOURCES in folder.absolute().parts


def why_not_kept(folder: Path) -> str:
    return (
        f"{folder.absolute()} is a part of what Ray unpacked for this job, and deletes after it; give an "
        "absolute path, best of a folder that all hosts share"
    )

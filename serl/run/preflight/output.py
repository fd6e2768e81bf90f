"""Where the run would write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fsspec import get_filesystem_class

from serl.config import ExperimentConfig
from serl.config.paths import UnknownPathError, blocked_by, expanded_path
from serl.run.preflight.finding import Finding

# Below it a node of Ray keeps what it unpacks for jobs, working directories too; it is removed after its use.
RUNTIME_RESOURCES = "runtime_resources"
_MAX_NAME_BYTES = 255


def examine_output(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Whether ``output_dir`` can be written, takes a run directory's name, and lasts."""
    try:
        folder = expanded_path(experiment.output_dir)
    except UnknownPathError as error:
        yield Finding("wrong", "output", f"output_dir = {error}")
        return
    run_name = f"{experiment.name}-evaluation-20260131-120000"
    if is_deleted_by_ray(folder):
        yield Finding("wrong", "output", f"output_dir = {experiment.output_dir!r}: {why_not_kept(folder)}")
    elif too_long := [part for part in (*folder.parts, run_name) if len(os.fsencode(part)) > _MAX_NAME_BYTES]:
        text = f"{too_long[0][:40]}… has more than the {_MAX_NAME_BYTES} bytes that a folder's name may have"
        yield Finding("wrong", "output", f"output_dir = {experiment.output_dir[:40]!r}: {text}")
    elif blocked := blocked_by(folder):
        yield Finding("wrong", "output", f"output_dir = {experiment.output_dir!r}: cannot write in {blocked}")


def examine_copies(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Whether fsspec has what opens ``checkpoint.copy_to``; nobody is asked whether it can be written."""
    copy_to = experiment.checkpoint.copy_to
    if copy_to is None:
        return
    try:
        get_filesystem_class(copy_to.partition("://")[0])
    except (ValueError, ImportError) as error:
        yield Finding("wrong", "output", f"checkpoint.copy_to = {copy_to!r}: {error}")


def is_deleted_by_ray(folder: Path) -> bool:
    """Whether ``folder`` is below one that Ray has unpacked for a submitted job."""
    return RUNTIME_RESOURCES in folder.absolute().parts


def why_not_kept(folder: Path) -> str:
    return (
        f"{folder.absolute()} is a part of what Ray unpacked for this job, and deletes after it; give an "
        "absolute path, best of a folder that all hosts share"
    )

"""``manifest.json``: size and SHA-256 of every file of a checkpoint, so that a damaged one is known as such.

Written when everything but `algorithm.json` is, which it lists too. A checkpoint of SERL 0.1 has none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serl.algorithm_state import (
    ALGORITHM_STATE,
    CheckpointError,
    algorithm_state_digest,
    read_algorithm_state,
    write_algorithm_state,
)
from serl.durable_files import FileDigest, digest_of, sync_folder, write_json

MANIFEST = "manifest.json"
_MAX_THREADS = 8
# Tokenizer files, JSON and headers, which nobody counts beforehand.
_MARGIN_BYTES = 64 * 2**20


class DamagedCheckpointError(CheckpointError):
    """A checkpoint was complete once, and its files are no longer what was written."""


def require_free_space(directory: Path, num_bytes: int) -> None:
    """Raises CheckpointError if ``num_bytes`` do not fit where ``directory`` lies; quotas show only later."""
    needed, free = num_bytes + _MARGIN_BYTES, shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"{directory.parent} has {free >> 20} MiB free, a checkpoint needs {needed >> 20} MiB; "
            "nothing was written, and earlier checkpoints are as they were"
        )


def complete_checkpoint(directory: Path, files: Mapping[str, FileDigest], state: dict[str, Any]) -> None:
    """Writes `manifest.json`, which lists ``files`` too, and then `algorithm.json` of ``state``.

    Raises CheckpointError, and writes nothing, if a file that learners wrote is not here.
    """
    if elsewhere := [name for name in files if not (directory / name).is_file()]:
        raise CheckpointError(
            f"{elsewhere[0]} of the checkpoint {directory.stem} is not in {directory}, where the driver is: "
            "learners on other hosts need an output_dir that all hosts share"
        )
    for folder in {(directory / name).parent for name in files}:
        sync_folder(folder)
    write_manifest(directory, {**files, ALGORITHM_STATE: algorithm_state_digest(state)})
    write_algorithm_state(directory, state)


def write_manifest(directory: Path, files: Mapping[str, FileDigest]) -> None:
    """``files`` are named by their paths below ``directory``, with slashes."""
    write_json(directory / MANIFEST, {name: asdict(files[name]) for name in sorted(files)})


def verify_checkpoint(directory: Path) -> None:
    """Reads every file of a checkpoint.

    Raises CheckpointError if it is not complete, and DamagedCheckpointError, which names a file, if it is not
    as it was written.
    """
    state = read_algorithm_state(directory)
    if not (directory / MANIFEST).exists() and not state.get("has_manifest"):
        return
    manifest = _read_manifest(directory)
    # Hashing gives the interpreter up, and one thread does not read as fast as disks can.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        found = list(threads.map(lambda item: _damage(directory / item[0], item[1]), manifest.items()))
    for name, damage in zip(manifest, found, strict=True):
        if damage:
            raise DamagedCheckpointError(f"{directory} is damaged: {name} {damage}")


def _read_manifest(directory: Path) -> dict[str, FileDigest]:
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        manifest = {name: FileDigest(**written) for name, written in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{directory} is damaged: {MANIFEST}: {error}") from error
    if ALGORITHM_STATE not in manifest:
        raise DamagedCheckpointError(f"{directory} is damaged: {MANIFEST} does not list {ALGORITHM_STATE}")
    return manifest


def _damage(file: Path, written: FileDigest) -> str:
    """What is wrong with ``file``; nothing if it is as it was written."""
    try:
        size = file.stat().st_size
        if size != written.size:
            return f"has {size} bytes, {written.size} were written"
        return "" if digest_of(file) == written else "holds other bytes than were written"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:  # a name that no file can have
        return f"cannot be read: {error}"

"""Copies of checkpoints at a URI that fsspec opens, for whoever resumes without the disk that they are on.

Below ``URI/RUN/`` lies what a run directory would have: ``checkpoints/iteration_000012/`` of the newest
checkpoints, and what is resumed with them. `algorithm.json` is copied last, as it is written last: a folder
without it is no checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from serl.algorithm_state import ALGORITHM_STATE, CheckpointError
from serl.config.run import CheckpointSection
from serl.durable_files import sync_folder
from serl.manifest import verify_checkpoint
from serl.run.checkpoint import (
    CHECKPOINTS,
    CheckpointWriter,
    DamagedCheckpoint,
    is_checkpoint_name,
    set_aside,
)
from serl.run.evaluations import EVALUATIONS
from serl.run.metrics_writer import METRICS
from serl.run_folder import CONFIG

logger = logging.getLogger(__name__)

# What a resumed run goes on writing, or compares itself with.
_RUN_FILES = (CONFIG, METRICS, EVALUATIONS)


def checkpoint_writer(run_dir: Path, settings: CheckpointSection) -> CheckpointWriter:
    """One that copies what it has written, with ``checkpoint.copy_to``; raises as `CheckpointCopies` does."""
    checkpoints_dir = run_dir / CHECKPOINTS
    keep, timeout_s = settings.keep, settings.timeout_s
    if settings.copy_to is None:
        return CheckpointWriter(checkpoints_dir, keep, timeout_s)
    copies = CheckpointCopies(settings.copy_to, run_dir, keep)
    return CheckpointWriter(checkpoints_dir, keep, timeout_s, on_written=copies.add)


class CheckpointCopies:
    """Those of the run in ``run_dir``, the newest ``keep`` of them.

    Raises CheckpointError if nothing can be written there; whatever happens to a copy, the checkpoint in the
    run directory is as it was.
    """

    def __init__(self, uri: str, run_dir: Path, keep: int) -> None:
        self.uri = f"{uri.rstrip('/')}/{run_dir.absolute().name}"
        self._run_dir = run_dir
        self._keep = keep
        with self._told("written"):
            self._files, root = _opened(self.uri)
            self._root = PurePosixPath(root)
            self._files.makedirs(str(self._checkpoints), exist_ok=True)

    @property
    def _checkpoints(self) -> PurePosixPath:
        return self._root / CHECKPOINTS

    def add(self, checkpoint: Path) -> None:
        """Copies a complete checkpoint, then removes the oldest. Raises CheckpointError."""
        with self._told("written"):
            for name in _RUN_FILES:
                if (self._run_dir / name).exists():
                    self._files.put_file(str(self._run_dir / name), str(self._root / name))
            target = self._checkpoints / checkpoint.name
            if self._files.exists(str(target)):  # of an update that is done again
                self._files.rm(str(target), recursive=True)
            for file in _last_comes_the_state(checkpoint):
                there = target / file.relative_to(checkpoint).as_posix()
                self._files.makedirs(str(there.parent), exist_ok=True)
                self._files.put_file(str(file), str(there))
            for name in self._names()[: -self._keep]:
                self._files.rm(str(self._checkpoints / name), recursive=True)

    def fetch_newest(
        self, damaged: Iterable[DamagedCheckpoint] = (), say: Callable[[str], object] = print
    ) -> Path | None:
        """Brings the newest sound copy into the run directory, whose ``damaged`` ones are set aside for it.

        Those that are damaged themselves are told to ``say`` and stay where they are. None if there is no
        copy; raises CheckpointError, also if all are damaged.
        """
        with self._told("read"):
            names = self._names()
        for name in reversed(names):
            here = self._run_dir / CHECKPOINTS / name
            partial = here.with_suffix(".partial")
            with self._told("read"):
                self._fetch(self._checkpoints / name, partial)
            try:
                verify_checkpoint(partial)
            except CheckpointError as error:
                shutil.rmtree(partial)
                say(str(error).replace(str(partial), f"{self.uri}/{CHECKPOINTS}/{name}"))
                continue
            with self._told("read"):
                self._fetch_run_files()
            set_aside(damaged, name, say)
            partial.rename(here)
            sync_folder(here.parent)
            say(f"{name} was fetched from {self.uri}")
            return here
        if names:
            raise CheckpointError(f"{self.uri} holds damaged checkpoints only, {self._run_dir} no sound one")
        return None

    def _fetch(self, there: PurePosixPath, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a fetch that was interrupted
        found: list[str] = self._files.find(str(there))
        for file in found:
            target = folder / PurePosixPath(file).relative_to(there)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(file, str(target))

    def _fetch_run_files(self) -> None:
        for name in _RUN_FILES:
            if self._files.exists(str(self._root / name)):
                self._files.get_file(str(self._root / name), str(self._run_dir / name))

    def _names(self) -> list[str]:
        """Of the complete copies, the oldest first."""
        found: list[str] = self._files.ls(str(self._checkpoints), detail=False)
        names = sorted(PurePosixPath(path).name for path in found)
        return [name for name in names if is_checkpoint_name(name) and self._is_complete(name)]

    def _is_complete(self, name: str) -> bool:
        return self._files.exists(str(self._checkpoints / name / ALGORITHM_STATE))

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError) as error:  # of the file system, the URI, a package it needs
            raise CheckpointError(f"checkpoint.copy_to = {self.uri} cannot be {what}: {error}") from error


def _opened(uri: str) -> tuple[Any, str]:
    return url_to_fs(uri, use_listings_cache=False)


def _last_comes_the_state(checkpoint: Path) -> list[Path]:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return sorted(files, key=lambda file: (file.name == ALGORITHM_STATE, file))

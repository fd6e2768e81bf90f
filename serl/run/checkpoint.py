"""Checkpoint folders: written beside their final name, renamed when complete, the oldest removed.

``iteration_000012/``, saved after the twelfth update, holds ``policy/`` (Hugging Face layout), ``learner/``
(weights, teacher and optimizer), ``manifest.json`` (sizes and hashes) and, written last, ``algorithm.json``
(counters, sampler position).
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from serl.algorithm_state import ALGORITHM_STATE, CheckpointError
from serl.durable_files import sync_folder
from serl.manifest import verify_checkpoint
from serl.run_folder import checkpoint_path

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"iteration_(\d+)")


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    found = _named_checkpoints(checkpoints_dir)
    return sorted(path for path in found if (path / ALGORITHM_STATE).is_file())


def _named_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """What has the name of a checkpoint, which it gets when it is complete."""
    if not checkpoints_dir.is_dir():
        return []
    return [path for path in checkpoints_dir.iterdir() if is_checkpoint_name(path.name)]


def is_checkpoint_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class DamagedCheckpoint:
    """A folder with the name of a checkpoint, and what is wrong with it."""

    path: Path
    reason: str

    def set_aside(self) -> Path:
        """Gives the folder a name under which it counts no longer; returns that. Nothing is deleted."""
        number, target = 1, self.path.with_name(f"{self.path.name}.damaged")
        while target.exists():
            number += 1
            target = self.path.with_name(f"{self.path.name}.damaged-{number}")
        return self.path.rename(target)


def set_aside(damaged: Iterable[DamagedCheckpoint], resumed: str, say: Callable[[str], object]) -> None:
    """Sets them aside, with a line about each to ``say``; the run resumes from ``resumed``."""
    for found in damaged:
        say(f"{found.reason}; it is kept as {found.set_aside().name}, the run resumes from {resumed}")


def find_checkpoint(run_dir: Path) -> tuple[Path | None, list[DamagedCheckpoint]]:
    """The newest checkpoint below ``run_dir`` whose files are as they were written, if there is one.

    With it, all newer ones, the newest first. Every file of those that are looked at is read.
    """
    checkpoints_dir, damaged = run_dir / CHECKPOINTS, []
    for path in sorted(_named_checkpoints(checkpoints_dir), reverse=True):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            damaged.append(DamagedCheckpoint(path, str(error)))
        else:
            return path, damaged
    return None, damaged


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest sound checkpoint below ``run_dir``; raises CheckpointError if there is none."""
    checkpoint, damaged = find_checkpoint(run_dir)
    if checkpoint is None:
        reasons = "".join(f"\n{found.reason}" for found in damaged)
        raise CheckpointError(f"{run_dir} holds no complete checkpoint below checkpoints/{reasons}")
    return checkpoint


def how_to_go_on(run_dir: Path) -> str:
    """A sentence for whoever finds a run that has failed."""
    checkpoints = list_checkpoints(run_dir / CHECKPOINTS)
    if not checkpoints:
        return "There is no checkpoint to resume from: start the run again."
    return f"To resume from {checkpoints[-1].name}: serl-run --resume {run_dir}"


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, and removes all but the newest ``keep``.

    What fails leaves no folder, and earlier checkpoints as they were. ``on_written`` is called in the thread
    with each that is complete; what it raises is raised as if the checkpoint could not be written. Nobody
    waits longer than ``timeout_s`` for one, which then never becomes a checkpoint. Whoever uses the writer as
    a context has waited for the last one at its end.
    """

    def __init__(
        self,
        checkpoints_dir: Path,
        keep: int,
        timeout_s: float,
        on_written: Callable[[Path], object] = lambda checkpoint: None,
    ) -> None:
        self._checkpoints_dir = checkpoints_dir
        self._keep = keep
        self._timeout_s = timeout_s
        self._on_written = on_written
        self._writing: Future[float] | None = None
        self._metrics: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.abandon()

    def start(self, iteration: int, copy: Callable[[Path], Callable[[], object]]) -> None:
        """Lets ``copy`` make an empty folder, and what it answers fill that in the thread.

        Waits for the checkpoint before, as `wait` does, and raises what ``copy`` does.
        """
        started = time.monotonic()
        self.wait()
        target = checkpoint_path(self._checkpoints_dir, iteration)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write = copy(partial)
        except BaseException as error:
            self._give_up(partial, error)
        self._writing = Future()
        arguments = (self._writing, partial, target, write)
        # Where a file system hangs, the process can still end.
        threading.Thread(target=self._fulfil, args=arguments, name="checkpoint", daemon=True).start()
        self._metrics["checkpoint/seconds_paused"] = time.monotonic() - started

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises CheckpointError if files could not be written or are not within ``timeout_s``, or whatever else
        was raised.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        if not wait([writing], self._timeout_s).done and writing.cancel():
            raise CheckpointError(
                f"the newest checkpoint below {self._checkpoints_dir} is still not complete after "
                f"checkpoint.timeout_s = {self._timeout_s:g} s, earlier ones are as they were: does the "
                "disk, or where copies go, answer?"
            )
        self._metrics["checkpoint/seconds_written"] = writing.result()

    def abandon(self) -> None:
        """`wait` for whoever has something worse to tell: what is raised is logged."""
        try:
            self.wait()
        except Exception:
            logger.exception("the checkpoint that was being written is lost")

    def take_metrics(self) -> dict[str, float]:
        """Of what happened since the last time; raises as `wait` does, but waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _fulfil(self, writing: Future[float], *of_one: Any) -> None:
        with suppress(InvalidStateError):  # nobody waits for it any more
            try:
                writing.set_result(self._write(writing, *of_one))
            except BaseException as error:
                writing.set_exception(error)

    def _write(
        self, writing: Future[float], partial: Path, target: Path, write: Callable[[], object]
    ) -> float:
        """How many seconds it took."""
        started = time.monotonic()
        try:
            write()
            if writing.cancelled():
                raise TimeoutError(f"{partial} came too late: nobody waits for it any more")
            partial.rename(target)
        except BaseException as error:
            self._give_up(partial, error)
        sync_folder(self._checkpoints_dir)
        remove_old_checkpoints(self._checkpoints_dir, self._keep)
        self._on_written(target)
        return time.monotonic() - started

    def _give_up(self, partial: Path, error: BaseException) -> NoReturn:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError):
            raise error
        logger.error("%s", partial, exc_info=error)
        raise CheckpointError(
            f"the checkpoint {partial.stem} cannot be written below {self._checkpoints_dir}, "
            f"earlier ones are as they were: {error}"
        ) from error


def remove_old_checkpoints(checkpoints_dir: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, and what interrupted saves left."""
    for path in list_checkpoints(checkpoints_dir)[:-keep]:
        shutil.rmtree(path)
    for path in checkpoints_dir.glob("*.partial"):
        logger.warning("removing the incomplete checkpoint %s", path)
        shutil.rmtree(path)

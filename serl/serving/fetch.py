"""Weights for hosts without the learner: its file, in pieces, through Ray's object store.

A host gets one copy, for whichever of its replicas asks first, and the former one is freed before. Replicas
go on answering meanwhile. What arrived is checked by whoever loads it (`serl.serving.transfer.landing`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from serl.serving.on_node import on_node
from serl.serving.weights_folder import host_id, join_folder, try_lock

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 2**20
# They are read, and travel, while the one before is written here.
_NUM_PIECES_AHEAD = 2
_COPY = ".copy"
_FETCHING = "fetching"
_RETRY_INTERVAL_S = 0.05


class WeightsGoneError(RuntimeError):
    """Announced weights can be read no longer: newer ones are there, or the host that had them is gone."""


@contextmanager
def on_this_host(
    update: dict[str, Any], broadcast: str, application: str, timeout_s: float
) -> Iterator[dict[str, Any]]:
    """``update``, or one that loads a copy on this host of the weights that it leads to.

    The copy, that of ``broadcast``, stays at least as long as the context. Raises WeightsGoneError, OSError
    if it does not fit here, and TimeoutError.
    """
    if update["kind"] != "shared_memory":
        yield update
        return
    if update["host"] == host_id():
        if not Path(update["path"]).exists():
            raise WeightsGoneError(f"weights {update['weights_seq_no']} are gone: no {update['path']}")
        yield update
        return
    folder, deadline = join_folder(application), time.monotonic() + timeout_s
    copy = folder / f"{broadcast}{_COPY}"
    fetching = os.open(folder / _FETCHING, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _wait_for_lock(fetching, deadline, f"another replica of this host to fetch weights into {folder}")
        if not copy.exists():
            _remove_unused_copies(folder)
            _fetch(update, copy, deadline)
        in_use = os.open(copy, os.O_RDONLY)
        fcntl.flock(in_use, fcntl.LOCK_SH)
    finally:
        os.close(fetching)
    try:
        yield update | {"path": str(copy), "host": host_id()}
    finally:
        os.close(in_use)


def read_piece(path: str, offset: int, num_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Where the weights are: ``num_bytes`` of the file, uint8 [num_bytes]."""
    return np.fromfile(path, np.uint8, num_bytes, offset=offset)


def pieces(update: dict[str, Any], deadline: float) -> Iterator[Any]:
    """The bytes of the learner's file in their order; no more than three pieces are under way.

    Raises WeightsGoneError and TimeoutError.
    """
    reading = on_node(read_piece, update["node_id"])
    path, size = update["path"], update["file_bytes"]
    under_way: deque[Any] = deque()
    for offset in range(0, size, PIECE_BYTES):
        under_way.append(reading.remote(path, offset, min(PIECE_BYTES, size - offset)))
        if len(under_way) > _NUM_PIECES_AHEAD:
            yield _arrived(under_way.popleft(), update, deadline)
    while under_way:
        yield _arrived(under_way.popleft(), update, deadline)


def _arrived(piece: Any, update: dict[str, Any], deadline: float) -> Any:
    try:
        return ray.get(piece, timeout=max(deadline - time.monotonic(), 0.0))
    except GetTimeoutError as error:
        raise TimeoutError(
            f"weights {update['weights_seq_no']} did not arrive in time from node {update['node_id']}"
        ) from error
    except RayError as error:
        raise WeightsGoneError(
            f"weights {update['weights_seq_no']} cannot be read on node {update['node_id']}: {error}"
        ) from error


def _fetch(update: dict[str, Any], copy: Path, deadline: float) -> None:
    if update["node_id"] is None:
        raise WeightsGoneError(
            f"{update['path']} is not on this host: serving.weight_transfer=shared_memory needs learner and "
            "replicas on one host; auto reaches others"
        )
    started = time.monotonic()
    unfinished = copy.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            for piece in pieces(update, deadline):
                file.write(piece)
        unfinished.rename(copy)
    finally:
        unfinished.unlink(missing_ok=True)
    took = time.monotonic() - started
    logger.info(
        "fetched weights %d, %d bytes, in %.2f s", update["weights_seq_no"], copy.stat().st_size, took
    )


def _remove_unused_copies(folder: Path) -> None:
    """A replica that starts may still be loading one."""
    for copy in folder.glob(f"*{_COPY}"):
        held = os.open(copy, os.O_RDONLY)
        try:
            if try_lock(held, fcntl.LOCK_EX):
                copy.unlink()
            else:
                logger.info("%s is being loaded", copy)
        finally:
            os.close(held)


def _wait_for_lock(lock: int, deadline: float, what: str) -> None:
    while not try_lock(lock, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(_RETRY_INTERVAL_S)

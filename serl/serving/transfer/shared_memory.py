"""Weights as safetensors files in shared memory: written by a learner, mapped by the replicas of its host.

Each deployment has a folder, locked by the process that started it for as long as that lives; a folder
without its lock is what a killed run left and is removed by the next start. A version is a file of its own
that gets its name when it is complete, so a replica that still reads an old version is never disturbed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from serl.serving.transfer.landing import UpdateError, describe, trailer
from serl.serving.transfer.sender import NamedTensors

NUM_KEPT_VERSIONS = 2
_PREFIX = "serl-weights-"
_LOCK = "lock"

# The locks this process holds, by application; the kernel gives them up when the process ends.
_held_locks: dict[str, int] = {}


def shared_memory_root() -> Path:
    """``/dev/shm``, or the folder for temporary files where there is none."""
    root = Path("/dev/shm")
    return root if root.is_dir() else Path(tempfile.gettempdir())


def weights_folder(application: str) -> Path:
    """Where the weights of the deployment ``application`` lie."""
    return shared_memory_root() / f"{_PREFIX}{application}"


def claim_folder(application: str) -> int:
    """Makes and locks the folder of ``application``; removes folders that killed runs left.

    Returns how many were removed. Raises FileExistsError if a live process holds the folder.
    """
    num_removed = sum(_remove_if_stale(folder) for folder in shared_memory_root().glob(f"{_PREFIX}*"))
    folder = weights_folder(application)
    # Locked before it has a name that others look for.
    unnamed = Path(tempfile.mkdtemp(dir=shared_memory_root()))
    lock = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if folder.exists():
        shutil.rmtree(unnamed)
        os.close(lock)
        raise FileExistsError(f"{folder} belongs to a running deployment of the same name")
    unnamed.rename(folder)
    _held_locks[application] = lock
    return num_removed


def release_folder(application: str) -> None:
    """Removes the folder of ``application`` and gives its lock up."""
    shutil.rmtree(weights_folder(application), ignore_errors=True)
    lock = _held_locks.pop(application, None)
    if lock is not None:
        os.close(lock)


def release_all_folders() -> None:
    """Removes the folders of all deployments that this process started."""
    for application in list(_held_locks):
        release_folder(application)


def read_weights(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a version, by name; they map the file.

    Raises FileNotFoundError if the file is not on this host, UpdateError if it is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is not on this host: serving.weight_transfer=shared_memory needs learner and replicas "
            "on one host"
        )
    try:
        weights = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise UpdateError(f"{path} is not a whole file of weights: {error}") from error
    with weights:
        for name in weights.keys():
            yield name, weights.get_tensor(name)


class SharedMemorySender:
    """Writes versions into the folder of ``application``, keeping the newest two."""

    def __init__(self, application: str) -> None:
        self._folder = weights_folder(application)
        self._update: dict[str, Any] = {}

    def prepare(
        self, named_tensors: NamedTensors, weights_seq_no: int, replicas: dict[str, int]
    ) -> dict[str, Any]:
        tensors = _distinct(named_tensors)
        path = self._folder / f"{weights_seq_no:08d}.safetensors"
        unfinished = path.with_suffix(".unfinished")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        contents = dict([*tensors.items(), trailer(list(tensors.items()), weights_seq_no)])
        save_file(contents, unfinished)
        os.replace(unfinished, path)
        self._update = {
            "kind": "shared_memory",
            "weights_seq_no": weights_seq_no,
            "num_bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "info": describe(contents.items()),
            "path": str(path),
        }
        return self._update

    def transmit(self, timeout_s: float) -> None:
        """Nothing to send: the file is complete before it is announced."""

    def snapshot(self) -> dict[str, Any]:
        versions = sorted(self._folder.glob("*.safetensors"))
        for old in versions[:-NUM_KEPT_VERSIONS]:
            old.unlink(missing_ok=True)
        return self._update

    def close(self) -> None:
        """Nothing to free: whoever claimed the folder removes it."""


def _distinct(named_tensors: NamedTensors) -> dict[str, torch.Tensor]:
    """Contiguous tensors on CPU, without second names of the same storage (tied embeddings)."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in named_tensors:
        # Compared after the copy: only what `tensors` keeps alive cannot have its address used again.
        copy = tensor.detach().to("cpu").contiguous()
        storage = (copy.data_ptr(), copy.shape)
        if storage not in seen:
            seen.add(storage)
            tensors[name] = copy
    return tensors


def _remove_if_stale(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False  # just being made, or just being removed
    except PermissionError:
        return False  # another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(lock)

"""The folder in shared memory for the weights of a deployment: claimed, freed, found where it was left.

Locked by the process that started the deployment for as long as that lives; a folder without its lock is what
a killed run left. Nothing heavy is imported: a process that only tidies up uses this too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

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
    num_removed = remove_stale_folders()
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


def remove_stale_folders() -> int:
    """Removes the folders of processes that have ended; returns how many there were."""
    return sum(_remove_if_stale(folder) for folder in shared_memory_root().glob(f"{_PREFIX}*"))


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

"""The folder in shared memory for the weights of a deployment: held, freed, found where it was left.

One on each host that has a process of the deployment, and there as long as one of them lives: each holds a
lock, which the kernel gives up when the process ends. Driver and guardian free the folder of the driver's
host, a keeper those of others: a process of a few megabytes that waits for the locks. A folder that nobody
holds is what a killed run left. Nothing heavy is imported: a process that only tidies up uses this too.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "serl-weights-"
_LOCK = "lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HOLD_TIMEOUT_S = 10.0
_RETRY_INTERVAL_S = 0.01

# Forked once more, so that Ray, which ends the children of its workers, knows nothing of it.
_KEEPER = """
import fcntl, os, sys
folder, name = sys.argv[1:]
lock = os.open(os.path.join(folder, name), os.O_RDWR)
if os.fork():
    os._exit(0)
fcntl.flock(lock, fcntl.LOCK_EX)
if os.fstat(lock).st_nlink:
    for file in os.listdir(folder):
        os.unlink(os.path.join(folder, file))
    os.rmdir(folder)
"""

# The locks this process holds, by application; the kernel gives them up when the process ends.
_held_locks: dict[str, int] = {}


def shared_memory_root() -> Path:
    """``/dev/shm``, or the folder for temporary files where there is none."""
    root = Path("/dev/shm")
    return root if root.is_dir() else Path(tempfile.gettempdir())


def host_id() -> str:
    """The same in all processes that see one `shared_memory_root`: two containers of a machine may differ."""
    machine = _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else platform.node()
    return f"{machine}:{shared_memory_root().stat().st_dev}"


def weights_folder(application: str) -> Path:
    """Where the weights of the deployment ``application`` lie."""
    return shared_memory_root() / f"{_PREFIX}{application}"


def claim_folder(application: str) -> int:
    """Makes and holds the folder of ``application``, for a process that frees it or has somebody who does.

    Removes folders that killed runs left, and returns how many. Raises FileExistsError if there is a folder
    of the name that a live process holds.
    """
    num_removed = remove_stale_folders()
    folder = weights_folder(application)
    if folder.exists():
        raise FileExistsError(f"{folder} belongs to a running deployment of the same name")
    _hold(application)
    return num_removed


def join_folder(application: str) -> Path:
    """Holds the folder of ``application``, which is made where this host has none; it is freed with the last.

    May be called again. Raises OSError if it cannot be made.
    """
    folder = weights_folder(application)
    if application not in _held_locks or not folder.exists():
        if not folder.exists():
            remove_stale_folders()
        if _hold(application):
            # Not in the terminal's session, and in no folder that somebody may want to remove.
            command = [sys.executable, "-I", "-S", "-c", _KEEPER, str(folder), _LOCK]
            silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            subprocess.run(command, **silent, start_new_session=True, cwd="/", check=True)
    return folder


def remove_stale_folders() -> int:
    """Removes the folders of processes that have ended; returns how many there were."""
    return sum(_remove_if_stale(folder) for folder in shared_memory_root().glob(f"{_PREFIX}*"))


def release_folder(application: str) -> None:
    """Removes the folder of ``application`` and gives its lock up."""
    shutil.rmtree(weights_folder(application), ignore_errors=True)
    _give_up_lock(application)


def release_all_folders() -> None:
    """Removes the folders of all deployments that this process holds."""
    for application in list(_held_locks):
        release_folder(application)


def try_lock(file: int, kind: int) -> bool:
    """Takes the lock ``kind`` of fcntl on an open file; returns whether nobody's stands against it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _hold(application: str) -> bool:
    """Shares the lock of the folder with whoever else holds it; returns whether the folder is a new one."""
    folder, is_new = weights_folder(application), False
    deadline = time.monotonic() + _HOLD_TIMEOUT_S
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            is_new = True
        with suppress(FileNotFoundError):  # somebody removed the folder
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if try_lock(lock, fcntl.LOCK_SH) and os.fstat(lock).st_nlink:
                _give_up_lock(application)
                _held_locks[application] = lock
                return is_new
            os.close(lock)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{folder} was not freed by whoever removes it, waited {_HOLD_TIMEOUT_S:g} s")
        time.sleep(_RETRY_INTERVAL_S)


def _give_up_lock(application: str) -> None:
    lock = _held_locks.pop(application, None)
    if lock is not None:
        os.close(lock)


def _remove_if_stale(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:  # just being made or removed, another user's, or no folder: anybody may put one there
        return False
    try:
        if is_stale := try_lock(lock, fcntl.LOCK_EX):
            shutil.rmtree(folder, ignore_errors=True)
        return is_stale
    finally:
        os.close(lock)

"""The processes of a run: which they are, also when their parents have died, and ending all of them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_SHARED_MEMORY = Path("/dev/shm")


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent dies, so that none escapes.

    Linux only; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(*of: int) -> list[int]:
    """Ids of all processes below the processes ``of`` (none given: this one), zombies left out."""
    children: dict[int, list[int]] = {}
    for pid in _all_processes():
        state, parent = _stat(pid)[:2]
        if state not in ("", "Z"):
            children.setdefault(int(parent), []).append(pid)
    found: list[int] = []
    to_visit = list(of) or [os.getpid()]
    while to_visit:
        below = children.get(to_visit.pop(), [])
        found += below
        to_visit += below
    return found


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of this user's processes that were started with ``variable=value`` in their environment."""
    entry, found = f"\0{variable}={value}\0".encode(), list[int]()
    for pid in _all_processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue  # it has just ended, or is another user's
        if entry in b"\0" + environment + b"\0":
            found.append(pid)
    return found


def started(pid: int) -> str:
    """When the process ``pid`` began, in ticks since its machine did; nothing if there is none.

    A process id alone may be another process's by now. A zombie has ended.
    """
    state, _, began = _stat(pid)
    return "" if state == "Z" else began


def name_of(pid: int) -> str:
    """The first 15 characters of its program's name; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def stop_descendants(name: str) -> list[int]:
    """Stops the processes below this one whose program is ``name``: they do nothing, and look alive."""
    found = [pid for pid in descendants() if name_of(pid) == name]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return found


def kill_descendants(timeout_s: float, spare: Collection[int] = ()) -> None:
    """Kills all processes below this one but ``spare``, see `kill_all`.

    Nobody else may still wait for a child of this process.
    """
    kill_all(lambda: [pid for pid in descendants() if pid not in spare], timeout_s)
    _reap_children()


def kill_all(find: Callable[[], Iterable[int]], timeout_s: float) -> set[int]:
    """Kills what ``find`` finds, until it finds nothing or for ``timeout_s``; returns what was killed.

    Files in shared memory that are newer than this process, and that only those used, are removed.
    """
    deadline = time.monotonic() + timeout_s
    killed: set[int] = set()
    shared: set[Path] = set()
    while (living := list(find())) and time.monotonic() < deadline:
        for pid in living:
            if pid not in killed:
                shared.update(_shared_memory_files(pid))
            killed.add(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    _remove_unused(shared)
    return killed


def _all_processes() -> Iterator[int]:
    """Nothing where there is no ``/proc``."""
    return (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))


def _stat(pid: int) -> tuple[str, str, str]:
    """State, parent, start in ticks; empty texts if there is no such process.

    A process is a zombie, Z, when its last thread has ended, and with it what it holds; its first one may
    have ended before.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", "", ""
    # The name, in parentheses, may hold spaces and parentheses itself.
    fields = text.rpartition(")")[2].split()
    still_ends = fields[0] == "Z" and int(fields[17]) > 1
    return "X" if still_ends else fields[0], fields[1], fields[19]


def _shared_memory_files(pid: int) -> set[Path]:
    """Files right below ``/dev/shm`` that the process maps."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if f" {_SHARED_MEMORY}/" in line}
    return {file for file in files if file.parent == _SHARED_MEMORY}


def _remove_unused(files: set[Path]) -> None:
    """Of processes that were killed: NCCL, torch and vLLM remove their segments only if they end in order."""
    left = {file for file in files if _is_ours_and_new(file)}
    if not left:
        return
    for pid in _all_processes():
        left -= _shared_memory_files(pid)
    for file in left:
        file.unlink(missing_ok=True)


def _is_ours_and_new(file: Path) -> bool:
    """What is older than this process was there before the run, and may be somebody's data."""
    try:
        found = file.lstat()
    except OSError:
        return False  # it has no name any more
    seconds_after_boot = int(started(os.getpid())) / os.sysconf("SC_CLK_TCK")
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + seconds_after_boot
    return found.st_uid == os.getuid() and found.st_ctime >= began


def _reap_children() -> None:
    """Not every machine's first process does it, and a zombie looks like a process that was left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return

"""One writer a run directory: who it is, whether it lives, and taking over from one that died.

``writer.lock`` is locked (flock) by the process that writes the run, and ``writer.json`` says who that is,
with a heartbeat. On one machine a holder lives while its process does. On another machine, or in another
container, it lives if its heartbeat changes; clocks are compared only to shorten that wait. File systems that
share no locks, and process ids that are used again, are taken into account.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serl.durable_files import write_json
from serl.run.processes import started

LOCK = "writer.lock"
RECORD = "writer.json"

BEAT_INTERVAL_S = 10.0
DEAD_AFTER_S = 60.0
# A holder that lives beats twice in this time; one that has been silent for long is watched no longer.
_SHORTEST_WATCH_S = 2.5 * BEAT_INTERVAL_S
# Two that begin at once, without locks that they share, see who wrote last.
_SETTLE_S = 3.0


class RunDirInUseError(ValueError):
    """Another process writes the run directory; the text says which."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes a run. ``since`` is UTC.

    ``pid_space`` tells machines, their restarts and containers apart; ``started`` is when the process began,
    in ticks of its machine: a process id alone may be another process's by now.
    """

    host: str
    pid_space: str
    pid: int
    started: str
    since: str
    token: str
    beat: float

    @classmethod
    def this_process(cls) -> Writer:
        now = time.time()
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
        pid = os.getpid()
        return cls(socket.gethostname(), _pid_space(), pid, started(pid), since, uuid.uuid4().hex, now)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


_WRITER = TypeAdapter(Writer)


class WriterLock:
    """Held from `acquire` to `release`. ``on_lost`` is called, in a thread, if another process took over.

    That can happen only to a process that was stopped for longer than ``DEAD_AFTER_S``, or that begins when
    another one does with which it shares no locks. It is called again at every heartbeat from then on, for
    whoever sets it later.
    """

    def __init__(self, run_dir: Path, descriptor: int, writer: Writer) -> None:
        self.on_lost: Callable[[str], object] = lambda why: None
        self._record = run_dir / RECORD
        self._descriptor = descriptor
        self._writer = writer
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run directory heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, run_dir: Path, say: Callable[[str], object] = print) -> WriterLock:
        """Raises RunDirInUseError if another process writes ``run_dir``, and OSError if it is not writable.

        May take ``DEAD_AFTER_S`` if a process on another machine wrote it last and did not end in order;
        ``say`` is told so.
        """
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            alone = _try_lock(descriptor, run_dir)
            last, writer = read_writer(run_dir), Writer.this_process()
            if last is not None and last.pid_space != writer.pid_space:
                alone = False
                _watch(run_dir, last, say)
            elif last is not None and last.started and last.started == started(last.pid):
                raise _in_use(run_dir, last)
            write_json(run_dir / RECORD, asdict(replace(writer, beat=time.time())))
            if not alone:
                time.sleep(_SETTLE_S)
                winner = read_writer(run_dir)
                if winner is not None and winner.token != writer.token:
                    raise _in_use(run_dir, winner)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(run_dir, descriptor, writer)

    def release(self) -> None:
        """May be called twice."""
        if self._released.is_set():
            return
        self._released.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=BEAT_INTERVAL_S)
        if self._is_ours(read_writer(self._record.parent)):
            self._record.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _beat(self) -> None:
        wait_s = _SETTLE_S
        while not self._released.wait(wait_s):
            wait_s = BEAT_INTERVAL_S
            try:
                found = read_writer(self._record.parent)
                if self._is_ours(found):
                    write_json(self._record, asdict(replace(self._writer, beat=time.time())))
                elif found is not None or self._record.with_name(LOCK).exists():
                    who = found or "another process, which has ended since"
                    self.on_lost(f"{self._record.parent} was taken over by {who}")
            except OSError:
                continue  # a full disk, a file system that is away: who takes over then is seen next time

    def _is_ours(self, found: Writer | None) -> bool:
        return found is not None and found.token == self._writer.token


def read_writer(run_dir: Path) -> Writer | None:
    """Who writes ``run_dir``, or did so last and did not end in order."""
    try:
        writer = _WRITER.validate_json((run_dir / RECORD).read_bytes(), strict=True)
    except (FileNotFoundError, ValidationError):
        return None
    return writer if math.isfinite(writer.beat) else None


def _try_lock(descriptor: int, run_dir: Path) -> bool:
    """Whether this process now has the lock; False where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(run_dir, read_writer(run_dir)) from error
    except OSError:
        return False
    return True


def _watch(run_dir: Path, last: Writer, say: Callable[[str], object]) -> None:
    """Returns once ``last`` is known to be dead; raises RunDirInUseError as soon as it has a pulse."""
    watch_s = DEAD_AFTER_S if time.time() - last.beat < DEAD_AFTER_S else _SHORTEST_WATCH_S
    say(f"{run_dir}: {last}, did not end in order; watching its heartbeat for {watch_s:g} s")
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(0.5)
        found = read_writer(run_dir)
        if found is None:
            return
        if found != last:
            raise _in_use(run_dir, found)


def _in_use(run_dir: Path, writer: Writer | None) -> RunDirInUseError:
    who = "another process, which has just started" if writer is None else str(writer)
    return RunDirInUseError(f"{run_dir} is being written by {who}: one process at a time can write a run")


def _pid_space() -> str:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()

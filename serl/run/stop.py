"""Signals that end a run: the first one asks for a checkpoint, the second one ends everything at once.

SIGINT, SIGTERM and SIGHUP are blocked here, in every thread that is started later and in every process below,
which inherits the mask: Slurm and others send SIGTERM to all processes of a job step, and learners that died
of it would take the weights with them. Env runners unblock them for what environments start
(`serl.rollout.signals`). One thread listens to the signals, so they are heard whatever the main thread does,
and whichever thread of a library that was there before they reach.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NoReturn

from serl.run.guardian import Guardian
from serl.run.processes import adopt_orphans, kill_descendants, stop_descendants

logger = logging.getLogger(__name__)

# Wrappers pass on a signal that the process has had already, and shells send SIGHUP after the terminal has.
_SAME_REQUEST_S = 0.5
_KILL_TIMEOUT_S = 10.0


class StopRequest(threading.Event):
    """Set by the first signal; while there is ``nothing_to_save``, that one ends everything at once.

    ``before_ending``: what to do before the process ends at once, after its descendants have. ``guardian``:
    who looks that it does end. ``shutdown_hangs`` is for whoever stops the cluster to say that only
    `end_at_once` is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nothing_to_save = False
        self.before_ending: list[Callable[[], object]] = []
        self.guardian: Guardian | None = None
        self.shutdown_hangs = False
        self._first = 0.0
        self._ends = threading.RLock()
        # Standard error itself goes to a file while the cluster starts and stops.
        self._terminal = os.dup(2)

    def receive(self, number: int) -> None:
        """A signal has come."""
        now = time.monotonic()
        if self.nothing_to_save:
            name = signal.Signals(number).name
            self.end_at_once(128 + number, f"stopped by {name} before there was anything to save")
        elif not self.is_set():
            self._first = now
            self.set()
            self._say("stopping: saving a checkpoint; once more to stop at once")
        elif now - self._first > _SAME_REQUEST_S:
            self.end_at_once(128 + number, "stopped at once")

    def end_at_once(self, code: int, why: str = "") -> NoReturn:
        """Ends every process below this one, then this one; what was not saved is lost."""
        # Whoever else wants the end waits here for it.
        with self._ends:
            self.expect_end()
            if why:
                self._say(why)
            try:
                # Ray ends a process that has lost its raylet, with an exit code of its own.
                raylets = stop_descendants("raylet")
                self.kill_descendants(but=raylets)
                for step in self.before_ending:
                    step()
                if self.guardian is not None:
                    self.guardian.dismiss()
                self.kill_descendants()
            finally:
                os._exit(code)

    def expect_end(self) -> None:
        """From now on something is wrong if this process does not end soon."""
        if self.guardian is not None:
            self.guardian.expect_end()

    def kill_descendants(self, but: Collection[int] = ()) -> None:
        """Nothing that was started below this process goes on, except for the guardian and ``but``."""
        guardian = [self.guardian.pid] if self.guardian is not None else []
        kill_descendants(_KILL_TIMEOUT_S, spare=[*guardian, *but])

    def _say(self, text: str) -> None:
        with suppress(OSError):  # after SIGHUP there may be no terminal
            os.write(self._terminal, f"\n{text}\n".encode())
        logger.info("%s", text)


def stop_on_signal() -> StopRequest:
    """A request that SIGINT, SIGTERM and SIGHUP (unless ignored, as by nohup) set from now on.

    To be called by the main thread.
    """
    request = StopRequest()
    numbers = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.add(signal.SIGHUP)

    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        with reader, writer:
            while True:
                number = reader.recv(1)[0]
                if number in numbers:  # libraries handle others
                    request.receive(number)

    for number in numbers:
        # A handler runs in the main thread once that is not in a call of C: too late.
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writer.fileno())
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    adopt_orphans()
    threading.Thread(target=listen, name="signals", daemon=True).start()
    return request

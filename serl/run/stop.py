"""Signals that end a run: the first one asks for a checkpoint, the second one ends everything at once.

SIGINT, SIGTERM and SIGHUP are blocked here, in every thread that is started later and in every process below,
which inherits the mask: Slurm and others send SIGTERM to all processes of a job step, and learners that died
of it would take the weights with them. One thread waits for the signals, so they are heard whatever the main
thread does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from serl.run.processes import adopt_orphans, kill_descendants

# Wrappers pass on a signal that the process has had already, and shells send SIGHUP after the terminal has.
_SAME_REQUEST_S = 0.5
_KILL_TIMEOUT_S = 10.0


class StopRequest(threading.Event):
    """Set by the first signal. ``before_ending``: what to do before the process ends at once.

    ``shutdown_hangs`` is for whoever stops the cluster to say that only `end_at_once` is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before_ending: list[Callable[[], None]] = []
        self.shutdown_hangs = False
        self._first = 0.0
        # Standard error itself goes to a file while the cluster starts and stops.
        self._terminal = os.dup(2)

    def receive(self, number: int) -> None:
        """A signal has come."""
        now = time.monotonic()
        if not self.is_set():
            self._first = now
            self.set()
            self._say("stopping: saving a checkpoint; once more to stop at once")
        elif now - self._first > _SAME_REQUEST_S:
            self.end_at_once(128 + number)

    def end_at_once(self, code: int, why: str = "") -> NoReturn:
        """Ends every process below this one, then this one; what was not saved is lost."""
        if why:
            self._say(why)
        try:
            kill_descendants(_KILL_TIMEOUT_S)
            for step in self.before_ending:
                step()
        finally:
            os._exit(code)

    def _say(self, text: str) -> None:
        with suppress(OSError):  # after SIGHUP there may be no terminal
            os.write(self._terminal, f"\n{text}\n".encode())


def stop_on_signal() -> StopRequest:
    """A request that SIGINT, SIGTERM and SIGHUP (unless ignored, as by nohup) set from now on.

    To be called by the main thread, before others are started.
    """
    request = StopRequest()
    numbers = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.add(signal.SIGHUP)

    def handle(number: int, frame: FrameType | None) -> None:
        """For a signal that reaches a thread which was there before; Ray may not end the process instead."""
        request.receive(number)

    def wait() -> None:
        while True:
            request.receive(signal.sigwait(numbers))

    for number in numbers:
        signal.signal(number, handle)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    adopt_orphans()
    threading.Thread(target=wait, name="signals", daemon=True).start()
    return request

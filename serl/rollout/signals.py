"""Signals below `serl-run`, which blocks them in every process that it starts (`serl.run.stop`).

A program that inherits the mask cannot be ended with `Popen.terminate` or ``timeout``.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_OF_A_NEW_PROCESS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def unblock_signals_for_children() -> None:
    """What this process starts hears those of SIGINT, SIGTERM and SIGHUP that it had inherited blocked.

    To be called by the main thread, before it starts those that start processes. This process itself lives
    on as before: it takes the signals and does nothing.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & _OF_A_NEW_PROCESS.keys()
    if not blocked:
        return
    for number in blocked:
        signal.signal(number, _do_nothing)  # unlike one that ignores it, gone once another program runs

    def hear() -> None:
        for number in blocked:
            signal.signal(number, _OF_A_NEW_PROCESS[signal.Signals(number)])

    os.register_at_fork(after_in_child=hear)  # as by `multiprocessing`, which runs no other program
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass

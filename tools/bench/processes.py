"""Processor time by kind of process: what stays comparable when other work keeps the cores busy."""

from __future__ import annotations

from collections import Counter

import psutil

DRIVER = "driver"
REPLICA = "replica"
ENV_RUNNER = "env runner"
CLUSTER = "cluster"

_ACTORS = {"ray::ServeReplica": REPLICA, "ray::SERLEnvRunner": ENV_RUNNER}


def processor_seconds() -> Counter[str]:
    """Seconds of this process and of the Ray cluster it started, so far, by kind.

    ``cluster`` is everything but replicas and env runners. Processes that have ended are missing.
    """
    seconds: Counter[str] = Counter({DRIVER: _seconds(psutil.Process())})  # pyright: ignore[reportArgumentType]
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[:1]
            spent = _seconds(process)
        except psutil.NoSuchProcess:
            continue
        kinds = (kind for start, kind in _ACTORS.items() if title and title[0].startswith(start))
        seconds[next(kinds, CLUSTER)] += spent  # pyright: ignore[reportArgumentType]
    return seconds


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system

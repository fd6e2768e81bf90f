"""What the processes of a run use, by kind of process."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tools.drill.processes import DRIVER, processes_below, shared_memory_files

MIB = 2.0**20
MEMORY, DESCRIPTORS, THREADS, PROCESSES = "resident MiB", "file descriptors", "threads", "processes"
SHARED_MEMORY, OBJECT_STORE = "files in /dev/shm MiB", "object store MiB"
# By how much each has to grow in 100 updates to be worth a look.
QUANTITIES: Mapping[str, float] = {
    MEMORY: 1.0,
    DESCRIPTORS: 0.5,
    THREADS: 0.5,
    PROCESSES: 0.1,
    SHARED_MEMORY: 0.5,
    OBJECT_STORE: 1.0,
}
MACHINE = "run"


@dataclass(frozen=True, slots=True)
class Sample:
    """``values`` by quantity and kind of process, summed over its processes, after ``updates`` updates.

    Resident memory is without what is shared; the object store is what of its memory was ever filled.
    """

    time: float
    updates: int
    values: dict[str, dict[str, float]] = field(default_factory=dict)


def take_sample(pid: int, updates: int, shared_before: set[Path]) -> Sample:
    """Of the run whose driver is ``pid``; shared memory that was there before it is not counted."""
    values: dict[str, dict[str, float]] = {name: defaultdict(float) for name in QUANTITIES}
    for found, kind in processes_below(pid).items():
        try:
            process = psutil.Process(found)
            with process.oneshot():
                memory, descriptors, threads = process.memory_info(), process.num_fds(), process.num_threads()
        except psutil.Error:
            continue  # it has just ended
        values[MEMORY][kind] += (memory.rss - memory.shared) / MIB
        values[DESCRIPTORS][kind] += descriptors
        values[THREADS][kind] += threads
        values[PROCESSES][kind] += 1
        if kind == "raylet":
            values[OBJECT_STORE][MACHINE] += _object_store_mib(found)
    values[SHARED_MEMORY][MACHINE] = sum(_size(file) for file in shared_memory_files() - shared_before) / MIB
    return Sample(time.time(), updates, {name: dict(own) for name, own in values.items()})


def series(samples: Sequence[Sample], quantity: str) -> dict[str, tuple[list[float], list[float]]]:
    """Updates and values of ``quantity`` by kind of process; 0 where there was no such process."""
    kinds = sorted({kind for sample in samples for kind in sample.values[quantity]}, key=_driver_first)
    updates = [float(sample.updates) for sample in samples]
    return {kind: (updates, [sample.values[quantity].get(kind, 0.0) for sample in samples]) for kind in kinds}


def _driver_first(kind: str) -> tuple[bool, str]:
    return kind != DRIVER, kind


def _object_store_mib(raylet: int) -> float:
    """What is filled of the file in shared memory, without a name, that is Ray's object store."""
    blocks = 0
    try:
        for opened in Path(f"/proc/{raylet}/fd").iterdir():
            if str(opened.readlink()).startswith("/dev/shm/plasma"):
                blocks += opened.stat().st_blocks
    except OSError:
        return 0.0  # it has just ended
    return 512 * blocks / MIB


def _size(path: Path) -> int:
    files = (
        [path]
        if path.is_file()
        else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    )
    total = 0
    for file in files:
        try:
            total += 512 * file.stat().st_blocks
        except OSError:
            continue  # just replaced
    return total

"""``metrics.jsonl``, the TensorBoard curves of a run, and whatever else its metrics go to."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serl.run.event_files import EventFiles
from serl.run.failures import FAILURES
from serl.run.json_lines import parse_line, read_lines, row_of

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Writes metrics as JSON lines and as TensorBoard curves, and hands them to ``sinks``."""

    def __init__(self, run_dir: Path) -> None:
        self.sinks: list[Callable[[Mapping[str, float]], None]] = []
        self._run_dir = run_dir
        self._board: EventFiles | None = None

    def start(self, iteration: int, say: Callable[[str], object] = print) -> None:
        """Resumes from ``iteration``; what was written of later iterations is dropped, at 0 everything.

        Failures stay: they are not undone by an iteration that is played again. ``say`` is told when curves
        cannot be written, without which a run goes on.
        """
        for file in self._run_dir.glob("*.jsonl"):
            if file.name != FAILURES:
                # What is of iteration 0, the evaluation of the start, is played again.
                drop_lines_after(file, iteration if iteration else -1)
        board = self._run_dir / "tensorboard"
        purge_step = iteration + 1 if iteration else (0 if board.exists() else None)
        self._board = EventFiles(board, purge_step, say)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Appends one line. NaN and infinities are null in JSON and stay what they are in TensorBoard.

        Raises RuntimeError before `start`.
        """
        if self._board is None:
            raise RuntimeError("MetricsWriter.start was not called")
        record = {"iteration": iteration, "time": round(time.time(), 3)}
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        with (self._run_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | finite, ensure_ascii=False, allow_nan=False) + "\n")
        self._board.write(iteration, metrics)
        for sink in self.sinks:
            sink(metrics)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, in order: each a number or None by name; damaged lines are left out."""
    return read_lines(run_dir / METRICS, _row_of_numbers)


def _row_of_numbers(value: Any) -> dict[str, Any]:
    row = row_of(value)
    for name, found in row.items():
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise ValueError(f"{name} is no number")
    return row


def drop_lines_after(file: Path, iteration: int) -> None:
    """Keeps the lines of a JSON-lines file up to ``iteration``; an unfinished last line goes too.

    So do damaged ones, of which a warning says how many they are.
    """
    # Bytes, and not splitlines(): JSON leaves U+2028 and its like in strings as they are.
    *lines, unfinished = file.read_bytes().split(b"\n")
    iterations = [_iteration_of(line) for line in lines]
    kept = [line for line, at in zip(lines, iterations, strict=True) if at is not None and at <= iteration]
    if num_damaged := iterations.count(None):
        logger.warning("%s: %d lines are damaged and are dropped", file, num_damaged)
    if len(kept) == len(lines) and not unfinished:
        return
    replacement = file.with_suffix(".jsonl.new")
    replacement.write_bytes(b"".join(line + b"\n" for line in kept))
    replacement.replace(file)


def _iteration_of(line: bytes) -> int | None:
    try:
        return parse_line(line, row_of)["iteration"]
    except ValueError:
        return None

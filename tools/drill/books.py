"""What a run left in its folder, read strictly: a line that does not parse is a finding, not left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serl.algorithm_state import CheckpointError, read_algorithm_state
from serl.manifest import verify_checkpoint
from serl.run.checkpoint import list_checkpoints
from serl.run.evaluations import EVALUATIONS
from serl.run.json_lines import parse_line, row_of
from serl.run.metrics_writer import METRICS
from serl.run.records import TRAJECTORIES

Row = dict[str, Any]


@dataclass(slots=True)
class Books:
    """Rows in the order they were written; ``checkpoints`` are states by the name of their folder.

    ``unreadable`` says of which lines and checkpoints nothing is known, ``other_folders`` what else lies
    among the checkpoints.
    """

    metrics: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    trajectories: list[Row] = field(default_factory=list)
    checkpoints: dict[str, Row] = field(default_factory=dict)
    other_folders: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def updates(self) -> list[Row]:
        return [row for row in self.metrics if "learner/lr" in row]


def read_books(run_dir: Path) -> Books:
    """Those of the run in ``run_dir``; every file of its checkpoints is read and compared with its hash."""
    books = Books()
    books.metrics = _rows(run_dir / METRICS, books.unreadable)
    books.evaluations = _rows(run_dir / EVALUATIONS, books.unreadable)
    books.trajectories = _rows(run_dir / TRAJECTORIES, books.unreadable)
    checkpoints = run_dir / "checkpoints"
    for path in list_checkpoints(checkpoints):
        try:
            verify_checkpoint(path)
            books.checkpoints[path.name] = read_algorithm_state(path)
        except CheckpointError as error:
            books.unreadable.append(str(error))
    names = {path.name for path in checkpoints.glob("*")} - {
        path.name for path in list_checkpoints(checkpoints)
    }
    books.other_folders = sorted(names)
    return books


def update_rows(run_dir: Path) -> list[Row]:
    """The updates that a run, which may be writing just now, has finished so far."""
    return [row for row in _rows(run_dir / METRICS, []) if "learner/lr" in row]


def evaluation_rows(run_dir: Path) -> list[Row]:
    """The evaluations that a run, which may be writing just now, has finished so far."""
    return _rows(run_dir / EVALUATIONS, [])


def _rows(file: Path, unreadable: list[str]) -> list[Row]:
    rows: list[Row] = []
    if not file.exists():
        return rows
    *lines, unfinished = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_line(line, row_of))
        except ValueError as error:
            unreadable.append(f"{file.name} line {number}: {error}")
    if unfinished:
        unreadable.append(f"{file.name}: the last line has no end")
    return rows

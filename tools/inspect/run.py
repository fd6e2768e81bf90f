"""A run's folder as the page shows it."""

from __future__ import annotations

from pathlib import Path

from serl.run.evaluations import evaluations_file
from serl.run.failures import FAILURES
from serl.run.metrics_writer import METRICS
from serl.run.records import TRAJECTORIES
from serl.run.run_dir import CONFIG
from tools.inspect.reading import Problems, read_config, read_rows, read_trajectories
from tools.inspect.summary import RunSummary


def read_run(run_dir: Path, problems: Problems) -> tuple[RunSummary, list[str]]:
    """The summary of a run and its trajectories as JSON texts; what cannot be read goes to ``problems``."""
    summary = RunSummary(
        read_config(run_dir, problems),
        read_rows(run_dir / METRICS, problems),
        read_rows(evaluations_file(run_dir), problems),
        read_rows(run_dir / FAILURES, problems),
    )
    trajectories: list[str] = []
    if (run_dir / TRAJECTORIES).is_file():
        for record in read_trajectories(run_dir / TRAJECTORIES, problems):
            summary.add(record)
            trajectories.append(record.model_dump_json())
    return summary, trajectories


def run_state(run_dir: Path) -> tuple[tuple[int, int], ...]:
    """What changes with any of the files that `read_run` reads: their sizes and times of writing."""
    names = (CONFIG, METRICS, evaluations_file(run_dir).name, FAILURES, TRAJECTORIES)
    found = [(run_dir / name).stat() if (run_dir / name).is_file() else None for name in names]
    return tuple((0, 0) if each is None else (each.st_size, each.st_mtime_ns) for each in found)

"""Writes a run's recorded trajectories as one page: ``python -m tools.inspect RUN_DIR [--out FILE.html]``.

The HTML file needs no network and no server. Exit codes: 0 written, 2 nothing to show or nowhere to write.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from serl.run.evaluations import evaluations_file
from serl.run.metrics_writer import METRICS
from serl.run.records import TRAJECTORIES
from serl.run.surroundings import write_any_character
from tools.inspect.page import write_page
from tools.inspect.reading import Problems, read_config, read_rows, read_trajectories
from tools.inspect.summary import RunSummary

_HOW_TO_RECORD = (
    "Train with logging.trajectories_per_iteration above 0 (a resumed run may change it), for example: "
    "serl-run EXPERIMENT.yaml logging.trajectories_per_iteration=8"
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/inspect.html")
    options = parser.parse_args(arguments)
    run_dir: Path = options.run_dir
    if not run_dir.is_dir():
        return _refuse(f"{run_dir}: no such folder")
    if not (run_dir / TRAJECTORIES).is_file():
        return _refuse(f"{run_dir} has no {TRAJECTORIES}. {_HOW_TO_RECORD}")
    started = time.monotonic()
    problems = Problems()
    summary, trajectories = read_run(run_dir, problems)
    for sentence in problems.named:
        print(sentence, file=sys.stderr)
    if problems.count:
        print(f"{problems.count} lines or files could not be read and are left out", file=sys.stderr)
    if not trajectories:
        return _refuse(f"{run_dir / TRAJECTORIES} holds no trajectory that can be read. {_HOW_TO_RECORD}")
    out: Path = options.out or run_dir / "inspect.html"
    name = run_dir.resolve().name
    try:
        write_page(out, name, summary.as_values(name, problems), trajectories)
    except OSError as error:
        return _refuse(f"cannot write {out}: {error.strerror}")
    print(
        f"{out}: {len(trajectories)} trajectories, {summary.num_steps} steps, "
        f"{out.stat().st_size / 2**20:.1f} MiB, {time.monotonic() - started:.1f} s"
    )
    return 0


def read_run(run_dir: Path, problems: Problems) -> tuple[RunSummary, list[str]]:
    """The summary of a run and its trajectories as JSON texts; what cannot be read goes to ``problems``."""
    summary = RunSummary(
        read_config(run_dir, problems),
        read_rows(run_dir / METRICS, problems),
        read_rows(evaluations_file(run_dir), problems),
    )
    trajectories: list[str] = []
    for record in read_trajectories(run_dir / TRAJECTORIES, problems):
        summary.add(record)
        trajectories.append(record.model_dump_json())
    return summary, trajectories


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

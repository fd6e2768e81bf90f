"""Seconds from the command `serl-run EXPERIMENT.yaml` to its first finished episode, part by part."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench.arguments import experiment_of, model_folder
from tools.bench.figures import Figures
from tools.bench.first_episode import FIRST_EPISODE, PARTS

GOAL_S = 60.0

# One start, with everything that ends after it.
_TIMEOUT_S = 600.0


def run(options: argparse.Namespace, figures: Figures) -> None:
    # Also says what is wrong with the experiment, and converts or downloads its model.
    model_folder(experiment_of(options, options.model))
    starts = [_start(options) for _ in range(options.repetitions)]
    figures.note(f"{options.experiment}: {options.repetitions} starts")
    totals = [moments[FIRST_EPISODE] for moments in starts]
    for begin, end, what in PARTS:
        seconds = [moments[end] - moments.get(begin, 0.0) for moments in starts]
        figures.add(what, seconds, "s")
        figures.add_ratio(f"{what} / all", seconds, totals)
    figures.add("all, to the first episode", totals, "s", at_most=GOAL_S)
    figures.add("all / goal", [total / GOAL_S for total in totals])


def _start(options: argparse.Namespace) -> dict[str, float]:
    """The moments of one start, in seconds since the command."""
    with tempfile.TemporaryDirectory(prefix="serl-bench-") as folder:
        moments = Path(folder) / "moments.json"
        overrides = [*options.overrides, f"output_dir={folder}", "cluster.dashboard=false"]
        if options.model is not None:
            overrides.append(f"model.path={options.model}")
        started = time.time()
        command = [sys.executable, "-m", "tools.bench.first_episode", str(started), str(moments)]
        finished = subprocess.run(
            [*command, str(options.experiment), *overrides],
            timeout=_TIMEOUT_S,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode or not moments.is_file():
            raise RuntimeError(f"serl-run failed ({finished.returncode}): {finished.stdout}{finished.stderr}")
        return json.loads(moments.read_text(encoding="utf-8"))

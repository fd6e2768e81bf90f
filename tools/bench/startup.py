"""The start of whole runs."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

import serl.run.cli
import serl.run.cluster
from serl.config import ExperimentConfig
from serl.iteration import Progress
from serl.run.console import Console
from tools.bench.figures import Figures

# One start, with everything that ends after it.
_START_TIMEOUT_S = 600.0
_FIRST_EPISODE = "first episode"
# From a moment to a moment, and what happens between them. One after another these are all there is; parts
# that begin with "of it" or "beside" lie within others.
_PARTS = (
    ("command", "ray begins", "reading and checking the experiment"),
    ("ray begins", "ray ends", "Ray"),
    ("ray ends", "serve ends", "Ray Serve"),
    ("serve ends", "imports end", "imports of torch and RLlib"),
    ("imports end", "runners and learners end", "env runners and learners"),
    ("learners begin", "learners end", "of it learners"),
    ("runners and learners end", "replica ends", "waiting for the replica alone"),
    ("serve ends", "replica ends", "beside these: the replica"),
    ("replica ends", _FIRST_EPISODE, "tasks and the first episode"),
)


def startup(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """Of the command `serl-run`, to its first finished episode; it reads the experiment itself."""
    starts = [_start(experiment.model.path, options) for _ in range(options.repetitions)]
    figures.note(f"{options.experiment}: {options.repetitions} starts")
    figures.add(_FIRST_EPISODE, (moments[_FIRST_EPISODE] for moments in starts), "s", at_most=60.0)
    for begin, end, what in _PARTS:
        figures.add(what, (moments[end] - moments.get(begin, 0.0) for moments in starts), "s")
        figures.add_ratio(what, _FIRST_EPISODE)


def _start(model: str, options: argparse.Namespace) -> dict[str, float]:
    """The moments of one start, in seconds since the command."""
    with tempfile.TemporaryDirectory(prefix="serl-bench-") as folder:
        moments = Path(folder) / "moments.json"
        overrides = [*options.overrides, f"model.path={model}"]
        overrides += [f"output_dir={folder}", "cluster.dashboard=false"]
        command = [sys.executable, "-m", "tools.bench.startup", str(time.time()), str(moments)]
        finished = subprocess.run(
            [*command, str(options.experiment), *overrides],
            timeout=_START_TIMEOUT_S,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode or not moments.is_file():
            raise RuntimeError(f"serl-run failed ({finished.returncode}): {finished.stdout}{finished.stderr}")
        return json.loads(moments.read_text(encoding="utf-8"))


class _Watch:
    """Notes moments, in seconds since ``started``; the first of a name counts."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.moments: dict[str, float] = {}

    def note(self, moment: str) -> None:
        self.moments.setdefault(moment, time.time() - self._started)

    def around(self, owner: Any, function: str, begins: str, ends: str) -> None:
        """Notes when ``owner.function`` begins and ends."""
        timed: Callable[..., Any] = getattr(owner, function)

        @functools.wraps(timed)
        def call(*arguments: Any, **options: Any) -> Any:
            self.note(begins)
            try:
                return timed(*arguments, **options)
            finally:
                self.note(ends)

        setattr(owner, function, call)


def run_to_first_episode() -> int:
    """`serl-run` with a watch in its hand: ``STARTED MOMENTS.json EXPERIMENT.yaml [key.path=value …]``."""
    started, file, *arguments = sys.argv[1:]
    # Of arguments that it is given, `main` hears no signals.
    sys.argv[1:] = arguments
    watch = _Watch(float(started))
    watch.around(ray, "init", "ray begins", "ray ends")
    start_serving = serl.run.cluster.start_serving

    def start_serving_and_import(*arguments: Any, **options: Any) -> Any:
        names = start_serving(*arguments, **options)
        watch.note("serve ends")
        # The run imports it next; only then there is something to watch.
        algorithm = importlib.import_module("serl.algorithm")
        watch.note("imports end")
        watch.around(algorithm.SERLConfig, "build_learner_group", "learners begin", "learners end")
        watch.around(algorithm, "wait_until_ready", "runners and learners end", "replica ends")
        return names

    serl.run.cluster.start_serving = start_serving_and_import

    def progress(self: Console, progress: Progress) -> None:
        if progress.episodes and _FIRST_EPISODE not in watch.moments:
            watch.note(_FIRST_EPISODE)
            Path(file).write_text(json.dumps(watch.moments), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGINT)

    Console.progress = progress
    return serl.run.cli.main()


if __name__ == "__main__":
    sys.exit(run_to_first_episode())

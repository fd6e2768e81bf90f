"""`serl-run` with a watch in its hand: notes when its parts begin and end, and stops at the first episode.

`python -m tools.bench.first_episode STARTED MOMENTS.json EXPERIMENT.yaml [key.path=value …]`; ``STARTED`` is
the time of the command as `time.time` tells it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTED = "imported"
FIRST_EPISODE = "first episode"

# From a moment to a moment, and what happens between them. One after another these are all there is; parts
# that begin with "of it" or "beside" lie within others.
PARTS = (
    ("command", IMPORTED, "imports"),
    (IMPORTED, "ray begins", "reading and checking the experiment"),
    ("ray begins", "ray ends", "Ray"),
    ("ray ends", "serve ends", "Ray Serve"),
    ("serve ends", "runners and learners end", "env runners and learners"),
    ("learners begin", "learners end", "of it learners"),
    ("runners and learners end", "replica ends", "waiting for the replica alone"),
    ("serve ends", "replica ends", "beside these: the replica"),
    ("replica ends", FIRST_EPISODE, "tasks and the first episode"),
)


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


def main() -> int:
    started, file, *arguments = sys.argv[1:]
    watch = _Watch(float(started))
    import ray
    from ray.rllib.algorithms.algorithm import Algorithm

    import serl.algorithm
    import serl.run.cli
    import serl.run.train  # noqa: F401
    from serl.algorithm import Progress
    from serl.algorithm_config import SERLConfig
    from serl.run.console import Console

    watch.note(IMPORTED)
    watch.around(ray, "init", "ray begins", "ray ends")
    watch.around(serl.algorithm, "start_serving", "serve begins", "serve ends")
    watch.around(Algorithm, "setup", "runners and learners begin", "runners and learners end")
    watch.around(SERLConfig, "build_learner_group", "learners begin", "learners end")
    watch.around(serl.algorithm, "wait_until_ready", "replica alone begins", "replica ends")

    def progress(self: Console, progress: Progress) -> None:
        if progress.episodes and FIRST_EPISODE not in watch.moments:
            watch.note(FIRST_EPISODE)
            Path(file).write_text(json.dumps(watch.moments), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGINT)

    Console.progress = progress
    return serl.run.cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

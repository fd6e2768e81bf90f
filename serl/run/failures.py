"""``failures.jsonl``: what failed in a run without ending it, a line for each kind and reason.

``count``, ``first_time``, ``last_time`` and ``last_text`` are those of all parts of a run, ``iteration`` is
that of the last failure. A run that resumes adds to them, whatever it resumes from.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from serl.durable_files import write_atomically
from serl.rollout.failures import FailureCount, first_line
from serl.run.json_lines import read_lines, row_of

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
_WRITE_INTERVAL_S = 10.0
_COUNT = TypeAdapter(FailureCount)
_WHAT = {
    "episode": "an episode failed",
    "evaluation": "an episode of an evaluation failed",
    "judge": "the judge failed",
    "judge_request": "a request to the judge failed",
}


class FailureReport:
    """Tells the first failure of each kind and reason at once, and keeps the file up to date.

    ``tell`` shows a line to a person; ``iteration`` says where the run is.
    """

    def __init__(self, run_dir: Path, tell: Callable[[str], None], iteration: Callable[[], int]) -> None:
        self._file = run_dir / FAILURES
        self._tell = tell
        self._iteration = iteration
        self._earlier = _read(self._file)
        self._lines = dict(self._earlier)
        self._told: set[tuple[str, str]] = set()
        self._written_at = 0.0
        self._unwritten = False

    def take(self, count: FailureCount) -> None:
        """``count``: that of this process, as it is now."""
        key = (count.kind, count.reason)
        self._lines[key] = (self._iteration(), _sum(self._earlier.get(key), count))
        self._unwritten = True
        if key not in self._told:
            self._told.add(key)
            self._tell(
                f"{_WHAT[count.kind]} ({count.reason}): {first_line(count.last_text)}; "
                f"further ones are counted in {FAILURES}"
            )
            self.write()

    def write_if_due(self) -> None:
        """To be called now and then: writes what is new, every ten seconds at most."""
        if time.monotonic() - self._written_at >= _WRITE_INTERVAL_S:
            self.write()

    def write(self) -> None:
        """Writes what is new. A disk that is full is logged: it must not end an update that is under way."""
        if not self._unwritten:
            return
        lines = [{"iteration": iteration} | asdict(count) for iteration, count in self._lines.values()]
        self._written_at = time.monotonic()
        try:
            write_atomically(self._file, "".join(json.dumps(line) + "\n" for line in lines).encode())
        except OSError:
            logger.exception("%s", self._file)
        else:
            self._unwritten = False


def _sum(earlier: tuple[int, FailureCount] | None, count: FailureCount) -> FailureCount:
    if earlier is None:
        return replace(count)
    _, before = earlier
    return replace(count, count=before.count + count.count, first_time=before.first_time)


def _read(file: Path) -> dict[tuple[str, str], tuple[int, FailureCount]]:
    """By kind and reason, with the iteration of the last; what is damaged is logged and left out."""
    found = read_lines(file, lambda value: (row_of(value)["iteration"], _COUNT.validate_python(value)))
    return {(count.kind, count.reason): (iteration, count) for iteration, count in found}

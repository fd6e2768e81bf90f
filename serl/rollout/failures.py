"""What failed in a run without ending it, counted by kind and reason; with too much of it the run ends."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serl.rollout.report import ABORTED, ENV_RUNNER_DIED, FailedRollout

_MAX_TEXT_CHARACTERS = 4000
# However many episodes an env runner takes along, one death is no sign that everything fails.
_MAX_SHARE_OF_ONE_DEATH = 1 / 16


class TooManyFailuresError(RuntimeError):
    """So many episodes fail that to go on would be to spin. What was trained until then is whole."""


@dataclass(slots=True)
class FailureCount:
    """Failures of one ``kind`` for one ``reason``; times in Unix seconds.

    Kinds are ``episode`` and ``evaluation`` (an episode of one), ``judge`` (a trajectory without a usable
    answer) and ``judge_request`` (one that is sent again).
    """

    kind: str
    reason: str
    count: int
    first_time: float
    last_time: float
    last_text: str


class FailureMonitor:
    """Counts what fails. One thread drives it; ``on_failure`` is called with the new count of each.

    Of the last ``window`` episodes at most ``max_failed_share`` may have failed. Those that were lost with an
    env runner are among them, at most a sixteenth of the window for each death; aborted ones are not.
    """

    def __init__(self, max_failed_share: float, window: int) -> None:
        self._max_failed_share = max_failed_share
        self._window = window
        self._recent: deque[FailedRollout | None] = deque(maxlen=window)
        self._counts: dict[tuple[str, str], FailureCount] = {}
        self.on_failure: Callable[[FailureCount], None] = lambda count: None

    def episodes_finished(self, number: int) -> None:
        self._recent.extend([None] * number)

    def episodes_failed(self, failures: Sequence[FailedRollout]) -> None:
        """``failures``: all that were reported at a time."""
        num_lost: Counter[str] = Counter()
        for failure in failures:
            kind = "evaluation" if failure.request.evaluation else "episode"
            self.failed(kind, failure.reason, failure.message)
            if failure.reason == ENV_RUNNER_DIED:  # the message is one of this death
                num_lost[failure.message] += 1
            if failure.reason != ABORTED and num_lost[failure.message] <= self._max_of_one_death:
                self._recent.append(failure)

    def failed(self, kind: str, reason: str, text: str, count: int = 1) -> None:
        """``text``: one line that says what happened; more may follow."""
        now, text = time.time(), shortened(text)
        known = self._counts.setdefault((kind, reason), FailureCount(kind, reason, 0, now, now, text))
        known.count += count
        known.last_time, known.last_text = now, text
        self.on_failure(known)

    def require_episodes(self) -> None:
        """Raises TooManyFailuresError if more than the share that may fail of the recent episodes did."""
        failures = [failure for failure in self._recent if failure is not None]
        if len(failures) > self._max_failed_share * self._window:
            self._end(f"{len(failures)} of the last {len(self._recent)} episodes failed", failures)

    def require_evaluation(self, num_tasks: int, failures: Sequence[FailedRollout]) -> None:
        """Raises TooManyFailuresError if ``failures`` are more than that share of an evaluation's tasks."""
        if len(failures) > self._max_failed_share * num_tasks:
            self._end(f"{len(failures)} of an evaluation's {num_tasks} episodes failed", failures)

    @property
    def _max_of_one_death(self) -> int:
        return max(1, int(self._window * _MAX_SHARE_OF_ONE_DEATH))

    def _end(self, what: str, failures: Sequence[FailedRollout]) -> None:
        by_reason = Counter(failure.reason for failure in failures).most_common()
        counts = ", ".join(f"{count} {reason}" for reason, count in by_reason)
        raise TooManyFailuresError(
            f"{what} ({counts}), more than rollout.max_failed_share = {self._max_failed_share:g} allows; "
            f"the last: {first_line(failures[-1].message)}"
        )


def first_line(text: str) -> str:
    """What a console has room for."""
    line = text.partition("\n")[0].strip()
    return line if len(line) <= 400 else f"{line[:400]}…"


def shortened(text: str) -> str:
    """The first line and, if it is too long, the end of the rest, where a traceback says what was raised."""
    if len(text) <= _MAX_TEXT_CHARACTERS:
        return text
    line, _, rest = text.partition("\n")
    line = line[: _MAX_TEXT_CHARACTERS // 2]
    return f"{line}\n…{rest[len(line) - _MAX_TEXT_CHARACTERS :]}" if rest else f"{line}…"

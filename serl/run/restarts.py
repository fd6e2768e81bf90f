"""How often failed learners are replaced before a run ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from serl.learner.learner_group import LearnerError

WINDOW_S = 3600.0


class RestartBudget:
    """Allows ``max_restarts`` within an hour; ``clock`` gives seconds."""

    def __init__(self, max_restarts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_restarts = max_restarts
        self._clock = clock
        self._times: deque[float] = deque()
        self._last: tuple[int, str] | None = None

    def spend(self, error: LearnerError, weights_seq_no: int) -> str:
        """Takes one restart for ``error`` in the update of ``weights_seq_no``; returns which one it is.

        Raises LearnerError if none is left, or if the same update failed with the same words before: it would
        fail again.
        """
        now = self._clock()
        while self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        if self._last == (weights_seq_no, str(error)):
            raise LearnerError(f"{error}; so it did before learners were replaced") from error
        if len(self._times) >= self._max_restarts:
            raise LearnerError(
                f"{error}; learners were replaced {len(self._times)} times within an hour "
                f"(training.max_restarts = {self._max_restarts})"
            ) from error
        self._times.append(now)
        self._last = weights_seq_no, str(error)
        return f"restart {len(self._times)} of {self._max_restarts} within an hour"

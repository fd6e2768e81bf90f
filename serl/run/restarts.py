"""How often failed learners are replaced before a run ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from serl.learner.errors import LearnerError, LearnerRaisedError

WINDOW_S = 3600.0


class RestartBudget:
    """Allows ``max_restarts`` within an hour, and as many without a new update; ``clock`` gives seconds."""

    def __init__(self, max_restarts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_restarts = max_restarts
        self._clock = clock
        self._times: deque[float] = deque()
        self._reached = -1
        self._raised: tuple[int, str] | None = None

    def spend(self, error: LearnerError, weights_seq_no: int) -> str:
        """Takes one restart for ``error`` in the update of ``weights_seq_no``; returns which one it is.

        Raises LearnerError if none is left, or if learners raised the same in the same update before: they
        would again. That one died or was late twice proves nothing.
        """
        now = self._clock()
        # Where an update takes long, its failures are never many within an hour.
        while weights_seq_no > self._reached and self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        raised = (weights_seq_no, str(error)) if isinstance(error, LearnerRaisedError) else None
        if raised is not None and raised == self._raised:
            raise LearnerError(f"{error}; so it did before learners were replaced") from error
        if len(self._times) >= self._max_restarts:
            raise LearnerError(
                f"{error}; learners were replaced {len(self._times)} times within an hour or without a new "
                f"update (training.max_restarts = {self._max_restarts})"
            ) from error
        self._times.append(now)
        self._reached = max(weights_seq_no, self._reached)
        self._raised = raised
        return f"restart {len(self._times)} of {self._max_restarts}"

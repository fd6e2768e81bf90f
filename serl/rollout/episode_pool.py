"""Many episodes on one event loop: so many run, so many wait, and none waits for another one's step."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from serl.rollout.env_calls import EpisodeFailure
from serl.rollout.report import ABORTED, FailedRollout, RolloutReport
from serl.types import RolloutRequest, Trajectory

logger = logging.getLogger(__name__)

# Once something has finished, a report waits this long for more of it: fewer and larger messages.
COALESCE_S = 0.03

_MAX_ORIGIN_CALLS = 8


class TooManyRequestsError(ValueError):
    """More requests were sent than may run and wait; none of them was accepted."""


class EpisodePool:
    """Runs ``play(request, counters)`` for up to ``max_concurrent_episodes`` requests at a time.

    As many again may wait for a place. All methods belong to the thread of one event loop.
    """

    def __init__(
        self,
        play: Callable[[RolloutRequest, Counter[str]], Coroutine[Any, Any, Trajectory]],
        max_concurrent_episodes: int,
    ):
        self._play = play
        self._max_concurrent_episodes = max_concurrent_episodes
        self._queue: deque[RolloutRequest] = deque()
        self._running: dict[asyncio.Task[Trajectory], RolloutRequest] = {}
        self._finished: list[Trajectory] = []
        self._failed: list[FailedRollout] = []
        self._counters: Counter[str] = Counter()
        self._crash: BaseException | None = None
        self._something_ended = asyncio.Event()

    @property
    def num_unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._queue)

    async def exchange(self, requests: Sequence[RolloutRequest], wait_s: float) -> RolloutReport:
        """Takes on ``requests`` and reports what has ended since the last report.

        Returns soon after the first episode ended, at the latest after ``wait_s`` seconds (0: at once).
        Raises TooManyRequestsError, and whatever an episode raised that is no EpisodeFailure.
        """
        self._accept(requests)
        if wait_s > 0:
            deadline = asyncio.get_running_loop().time() + wait_s
            if await self._wait_for_an_end(wait_s):
                remaining = deadline - asyncio.get_running_loop().time()
                await asyncio.sleep(max(0.0, min(COALESCE_S, remaining)))
        return self._take_report()

    async def abort(self) -> RolloutReport:
        """Ends every episode now; those that run or wait are reported as failed with reason ``aborted``."""
        waiting = list(self._queue)
        self._queue.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        self._failed += [_aborted(request) for request in waiting]
        return self._take_report()

    def _accept(self, requests: Sequence[RolloutRequest]) -> None:
        limit = 2 * self._max_concurrent_episodes
        if self.num_unfinished + len(requests) > limit:
            raise TooManyRequestsError(
                f"{len(requests)} requests sent while {self.num_unfinished} are unfinished; "
                f"at most {limit} may be"
            )
        self._queue.extend(requests)
        self._fill()

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._max_concurrent_episodes:
            request = self._queue.popleft()
            task = asyncio.get_running_loop().create_task(self._play(request, self._counters))
            self._running[task] = request
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[Trajectory]) -> None:
        request = self._running.pop(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._failed.append(_aborted(request))
        elif isinstance(error, EpisodeFailure):
            logger.warning("episode failed: %s", error, exc_info=error.__cause__)
            self._failed.append(FailedRollout(request, error.reason, _with_origin(error)))
        elif error is not None:
            self._crash = error
        else:
            self._finished.append(task.result())
        self._something_ended.set()
        self._fill()

    async def _wait_for_an_end(self, wait_s: float) -> bool:
        try:
            await asyncio.wait_for(self._something_ended.wait(), wait_s)
        except TimeoutError:
            return False
        return True

    def _take_report(self) -> RolloutReport:
        self._something_ended.clear()
        if self._crash is not None:
            crash, self._crash = self._crash, None
            raise crash
        report = RolloutReport(self._finished, self._failed, Counter(self._counters), self.num_unfinished)
        self._finished, self._failed = [], []
        self._counters.clear()
        return report


def _with_origin(failure: EpisodeFailure) -> str:
    """What failed in one line; below it the last calls that led to what was raised."""
    if failure.__cause__ is None:
        return str(failure)
    lines = traceback.format_exception(failure.__cause__, limit=-_MAX_ORIGIN_CALLS, chain=False)
    return f"{failure}\n{''.join(lines)}"


def _aborted(request: RolloutRequest) -> FailedRollout:
    return FailedRollout(request, ABORTED, f"task {request.task.task_id!r}: aborted")

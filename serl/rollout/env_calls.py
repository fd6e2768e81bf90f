"""Calls into a foreign environment from the event loop: timed, bounded, with errors that name the task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from envs.base import StepAnswer, Task, TextEnv
from serl.rollout.report import add_seconds

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Simulators like to call `sys.exit`, which would end the event loop with everybody's episodes.
RAISED_BY_FOREIGN_CODE = (Exception, SystemExit)


class EpisodeFailure(RuntimeError):
    """One episode cannot go on; others are not affected. ``reason`` is a short key to count by."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@contextmanager
def foreign_code(reason: str, what: str) -> Generator[None]:
    """Whatever is raised inside becomes an EpisodeFailure that says ``what`` raised it."""
    try:
        yield
    except RAISED_BY_FOREIGN_CODE as error:
        raise EpisodeFailure(reason, f"{what} raised {error!r}") from error


class EnvThreads(ThreadPoolExecutor):
    """Twice as many threads as the episodes that run at a time, for the calls of blocking environments.

    A call that hangs holds its thread for ever, so only until ``num_hung`` has reached ``num_episodes`` is
    there a thread for each episode. One hangs that runs for longer than ``timeout_s`` seconds, `close` too.
    """

    def __init__(self, num_episodes: int, timeout_s: float) -> None:
        super().__init__(2 * num_episodes, thread_name_prefix="env")
        self._timeout_s = timeout_s
        self._started: dict[object, float] = {}

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return super().submit(self._timed, partial(fn, *args, **kwargs))

    @property
    def num_hung(self) -> int:
        now = time.monotonic()
        return sum(now - started > self._timeout_s for started in list(self._started.values()))

    def _timed(self, function: Callable[[], T]) -> T:
        call = object()
        self._started[call] = time.monotonic()
        try:
            return function()
        finally:
            del self._started[call]


class EnvCalls:
    """`reset` and `step` of ``env`` for ``task``, as coroutines.

    An environment with ``blocking = True`` runs in ``executor`` and may take ``timeout_s`` seconds a call;
    any other one is trusted to answer at once and runs on the event loop itself. ``seconds`` adds up the
    time inside the environment, as does ``counters["environment_seconds"]``. These two raise EpisodeFailure.
    A `close` that raises costs no episode: it is logged and counted as ``environment_close_errors``.
    """

    def __init__(
        self, env: TextEnv, task: Task, executor: Executor, timeout_s: float, counters: Counter[str]
    ):
        self._env = env
        self._task = task
        self._executor = executor
        self._timeout_s = timeout_s
        self._counters = counters
        self.seconds = 0.0

    async def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        options = {"task_id": self._task.task_id}
        return await self._call("reset", lambda: self._env.reset(seed=seed, options=options))

    async def step(self, action: str) -> StepAnswer:
        return await self._call("step", lambda: self._env.step(action))

    def close(self) -> None:
        """Closes the environment; nobody waits for a blocking one, whose threads may be busy for a while."""
        if self._env.blocking:
            self._executor.submit(self._env.close).add_done_callback(self._take_closed)
            return
        try:
            self._env.close()
        except RAISED_BY_FOREIGN_CODE as error:
            self._count_close_error(error)

    def _take_closed(self, closed: Future[None]) -> None:
        if not closed.cancelled() and (error := closed.exception()) is not None:
            self._count_close_error(error)

    def _count_close_error(self, error: BaseException) -> None:
        self._counters["environment_close_errors"] += 1
        logger.warning("task %r: close raised %r", self._task.task_id, error, exc_info=error)

    async def _call(self, name: str, function: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            if not self._env.blocking:
                return function()
            called = asyncio.get_running_loop().run_in_executor(self._executor, partial(_outcome, function))
            outcome = await asyncio.wait_for(called, self._timeout_s)
            if outcome[1] is not None:
                raise outcome[1]
            return outcome[0]
        except RAISED_BY_FOREIGN_CODE as error:  # it ends this episode alone, by name
            raise self._failure(name, error, time.perf_counter() - started) from error
        finally:
            seconds = time.perf_counter() - started
            self.seconds += seconds
            add_seconds(self._counters, "environment_seconds", seconds)

    def _failure(self, name: str, error: BaseException, seconds: float) -> EpisodeFailure:
        task_id = self._task.task_id
        if isinstance(error, TimeoutError) and seconds >= self._timeout_s:
            return EpisodeFailure(
                "environment_timeout", f"task {task_id!r}: {name} took longer than {self._timeout_s:g} s"
            )
        return EpisodeFailure("environment_error", f"task {task_id!r}: {name} raised {error!r}")


def _outcome(function: Callable[[], T]) -> tuple[T, None] | tuple[None, BaseException]:
    """What ``function`` returns or raises, as a value: no future takes a StopIteration."""
    try:
        return function(), None
    except RAISED_BY_FOREIGN_CODE as error:
        return None, error

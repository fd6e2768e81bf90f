"""Hands requests out to env runner actors and collects what they finished.

One `exchange` call is open per runner: it carries new requests there and finished trajectories back. A runner
that dies loses its episodes; they come back as failed requests, are counted, and are played again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from serl.private.rllib import worker_manager
from serl.rollout.report import ENV_RUNNER_DIED, FailedRollout, RolloutReport
from serl.types import RolloutRequest, Trajectory

logger = logging.getLogger(__name__)

_EXCHANGE = "exchange"
# How much longer than for its episodes to end a runner's open call may take.
_LAST_EXCHANGE_S = 10.0


class EnvRunnerError(RuntimeError):
    """An env runner met an error that is no failure of one episode: a line about it, then its traceback."""


@dataclass(slots=True)
class PoolReport:
    """What one `EnvRunnerPool.poll` brought; ``counters`` sums what the runners counted meanwhile."""

    trajectories: list[Trajectory] = field(default_factory=list)
    failures: list[FailedRollout] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)


class EnvRunnerPool:
    """The env runners of one algorithm as one bounded pool of concurrent episodes."""

    def __init__(self, group: EnvRunnerGroup, max_concurrent_episodes: int, exchange_wait_s: float = 0.2):
        self._group = group
        self._actors = worker_manager(group)
        self._capacity = max_concurrent_episodes
        self._exchange_wait_s = exchange_wait_s
        self._queue: deque[RolloutRequest] = deque()
        self._running: dict[int, dict[tuple[str, int], RolloutRequest]] = {}
        self._called: set[int] = set()
        self._num_died = 0
        self._probed_at = time.monotonic()

    @property
    def num_running(self) -> int:
        return sum(len(episodes) for episodes in self._running.values())

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def describe(self) -> str:
        """One line for whoever waits for episodes."""
        return f"{self.num_running} episodes run, {self.num_queued} wait"

    def submit(self, requests: Iterable[RolloutRequest], urgent: bool = False) -> None:
        """Queues requests; ``urgent`` ones go first (a rollout that must be played again)."""
        if urgent:
            self._queue.extendleft(reversed(list(requests)))
        else:
            self._queue.extend(requests)

    def withdraw_queued(self) -> list[RolloutRequest]:
        """Takes back what no runner has yet."""
        withdrawn = list(self._queue)
        self._queue.clear()
        return withdrawn

    def give_up(self, timeout_s: float) -> int:
        """Ends all episodes, reported or not, and forgets what was submitted; returns how many ran.

        A runner that does not answer within ``timeout_s`` is killed; Ray starts it again.
        """
        num_running = self.num_running
        self._queue.clear()
        deadline = time.monotonic() + timeout_s
        called = [runner for runner in self._actors.healthy_actor_ids() if self._running.get(runner)]
        answers: dict[Any, int] = {self._actors.actors()[runner].abort.remote(): runner for runner in called}
        _, silent = (
            ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s) if answers else ([], [])
        )
        for answer in silent:
            logger.error("env runner %d does not end its episodes: killing it", answers[answer])
            ray.kill(self._actors.actors()[answers[answer]], no_restart=False)
        while self._called and time.monotonic() < deadline + _LAST_EXCHANGE_S:
            results = self._actors.fetch_ready_async_reqs(
                tags=_EXCHANGE, timeout_seconds=self._exchange_wait_s, mark_healthy=False
            )
            self._called -= {result.actor_id for result in results.result_or_errors}
        self._running.clear()
        return num_running

    def poll(self, timeout_s: float) -> PoolReport:
        """Hands out queued requests and waits up to ``timeout_s`` for finished episodes.

        Raises EnvRunnerError.
        """
        self._restore_runners()
        self._hand_out()
        report = PoolReport()
        results = self._actors.fetch_ready_async_reqs(
            tags=_EXCHANGE, timeout_seconds=timeout_s, mark_healthy=False
        )
        for result in results.result_or_errors:
            self._called.discard(result.actor_id)
            answer = result.get()
            if isinstance(answer, RolloutReport):
                self._take(result.actor_id, answer, report)
            else:
                self._lose_runner(result.actor_id, str(answer), report)
        return report

    def _hand_out(self) -> None:
        idle = [runner for runner in self._actors.healthy_actor_ids() if runner not in self._called]
        for runner in idle:
            self._running.setdefault(runner, {})
        share: dict[int, list[RolloutRequest]] = {runner: [] for runner in idle}
        while self._queue and idle:
            runner = min(idle, key=lambda index: len(self._running[index]))
            if len(self._running[runner]) >= self._capacity:
                break
            request = self._queue.popleft()
            self._running[runner][request.group_id, request.rollout_index] = request
            share[runner].append(request)
        for runner in idle:
            if not self._running[runner]:
                continue
            self._called.add(runner)
            self._actors.foreach_actor_async(
                _EXCHANGE,
                tag=_EXCHANGE,
                kwargs={"requests": share[runner], "wait_s": self._exchange_wait_s},
                remote_actor_ids=[runner],
            )

    def _take(self, runner: int, reply: RolloutReport, report: PoolReport) -> None:
        if reply.error:
            raised = reply.error.strip().splitlines()[-1]
            raise EnvRunnerError(f"env runner {runner} failed: {raised}\n{reply.error}")
        report.trajectories += reply.trajectories
        report.failures += reply.failures
        report.counters.update(reply.counters)
        episodes = self._running[runner]
        for trajectory in reply.trajectories:
            episodes.pop((trajectory.group_id, trajectory.rollout_index), None)
        for failure in reply.failures:
            episodes.pop((failure.request.group_id, failure.request.rollout_index), None)

    def _lose_runner(self, runner: int, error: str, report: PoolReport) -> None:
        lost = self._running.pop(runner, {})
        self._num_died += 1
        told = f"env runner {runner} died with {len(lost)} episodes (death {self._num_died}): {error}"
        logger.warning("%s", told)
        report.failures += [FailedRollout(request, ENV_RUNNER_DIED, told) for request in lost.values()]
        report.counters["env_runners_died"] += 1

    def _restore_runners(self) -> None:
        if self._actors.num_healthy_actors() == self._actors.num_actors():
            return
        if time.monotonic() - self._probed_at < 1.0:
            return
        self._probed_at = time.monotonic()
        for runner in self._group.probe_unhealthy_env_runners():
            logger.info("env runner %d is back", runner)

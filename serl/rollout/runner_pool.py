"""Hands requests out to env runner actors and collects what they finished.

One `exchange` call is open per runner: it carries new requests there and finished trajectories back. A runner
that dies loses its episodes; they come back as failed requests, are counted, and are played again. One that
says that it is unfit is killed, and counts as one that died. One that has no place in the cluster, or not
yet, gets no episodes: nobody waits for it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from serl.private.rllib import add_env_runner, worker_manager
from serl.rollout.report import ENV_RUNNER_DIED, FailedRollout, RolloutReport
from serl.types import RolloutRequest, Trajectory

logger = logging.getLogger(__name__)

_EXCHANGE = "exchange"
# How much longer than for its episodes to end a runner's open call may take.
_LAST_EXCHANGE_S = 10.0
_PING_INTERVAL_S = 1.0
# With nobody to wait for.
_IDLE_S = 0.01


class EnvRunnerError(RuntimeError):
    """An env runner met an error that is no failure of one episode: a line about it, then its traceback."""


@dataclass(slots=True)
class PoolReport:
    """What one `EnvRunnerPool.poll` brought; ``counters`` sums what the runners counted meanwhile."""

    trajectories: list[Trajectory] = field(default_factory=list)
    failures: list[FailedRollout] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)


class EnvRunnerPool:
    """The env runners of one algorithm as one bounded pool of concurrent episodes.

    ``max_episodes`` bounds them beside what each runner takes (None: it does not). ``on_ready`` is told of
    each runner that begins to play, at first or again, ``on_end`` of each that is not wanted any more.
    """

    max_episodes: int | None = None
    on_ready: Callable[[int, ActorHandle], object] = staticmethod(lambda index, runner: None)
    on_end: Callable[[int], object] = staticmethod(lambda index: None)

    def __init__(self, group: EnvRunnerGroup, max_concurrent_episodes: int, exchange_wait_s: float = 0.2):
        self._group = group
        self._actors = worker_manager(group)
        self._capacity = max_concurrent_episodes
        self._exchange_wait_s = exchange_wait_s
        self._queue: deque[RolloutRequest] = deque()
        self._running: dict[int, dict[tuple[str, int], RolloutRequest]] = {}
        self._called: set[int] = set()
        self._leaving: set[int] = set()
        self._pings: dict[int, ray.ObjectRef] = {}
        self._pinged_at = time.monotonic()
        self._num_died = 0
        self._counters: Counter[str] = Counter()

    @property
    def num_running(self) -> int:
        return sum(len(episodes) for episodes in self._running.values())

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_wanted(self) -> int:
        """Env runners, those included that have no place yet, or not again."""
        return self._actors.num_actors() - len(self._leaving)

    @property
    def num_playing(self) -> int:
        """Those of the env runners wanted that can play."""
        return len(self.playing())

    @property
    def num_places(self) -> int:
        """Episodes that may run at a time."""
        places = self._capacity * self.num_playing
        return places if self.max_episodes is None else min(places, self.max_episodes)

    def playing(self) -> dict[int, ActorHandle]:
        """The env runners that play, by the numbers they are known by."""
        actors, healthy = self._actors.actors(), self._actors.healthy_actor_ids()
        return {runner: actors[runner] for runner in healthy if runner not in self._leaving}

    def metrics(self) -> dict[str, float]:
        """As it is now, below ``pool/``."""
        numbers = {
            "env_runners": self.num_playing,
            "missing_env_runners": self.num_wanted - self.num_playing,
            "places": self.num_places,
            "episodes_running": self.num_running,
            "episodes_waiting": self.num_queued,
        }
        return {f"pool/{name}": float(number) for name, number in numbers.items()}

    def describe(self) -> str:
        """One line for whoever waits for episodes."""
        runners = f"{self.num_playing} of {self.num_wanted} env runners play"
        return f"{runners}, {self.num_running} episodes run, {self.num_queued} wait"

    def resize(self, number: int) -> None:
        """Makes ``number`` env runners wanted.

        New ones play as soon as they have a place. One that is to end gets no more episodes and ends after
        those it has; first those that do not play, then those with the fewest.
        """
        while self.num_wanted < number and self._leaving:
            self._leaving.pop()
        while self.num_wanted < number:
            add_env_runner(self._group)
            self._counters["env_runners_added"] += 1
        staying = [runner for runner in self._actors.actor_ids() if runner not in self._leaving]
        staying.sort(key=lambda runner: (self._actors.is_actor_healthy(runner), self._num_episodes(runner)))
        self._leaving |= set(staying[: self.num_wanted - number])

    def close(self) -> None:
        """Gives up the env runners that do not play: whoever stops them all would wait for their place."""
        playing = self._actors.healthy_actor_ids()
        for runner in [runner for runner in self._actors.actor_ids() if runner not in playing]:
            ray.kill(self._actors.remove_actor(runner))

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
        self._end_leaving()
        self._look_for_ready()
        self._hand_out()
        if not self._called:
            time.sleep(min(timeout_s, _IDLE_S))
        report = PoolReport(counters=self._counters)
        self._counters = Counter()
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

    def _num_episodes(self, runner: int) -> int:
        return len(self._running.get(runner, ()))

    def _hand_out(self) -> None:
        idle = [runner for runner in self._actors.healthy_actor_ids() if runner not in self._called]
        for runner in idle:
            self._running.setdefault(runner, {})
        share: dict[int, list[RolloutRequest]] = {runner: [] for runner in idle}
        open_to_new = [runner for runner in idle if runner not in self._leaving]
        num_free = len(self._queue) if self.max_episodes is None else self.max_episodes - self.num_running
        while self._queue and open_to_new and num_free > 0:
            runner = min(open_to_new, key=self._num_episodes)
            if self._num_episodes(runner) >= self._capacity:
                break
            request = self._queue.popleft()
            self._running[runner][request.group_id, request.rollout_index] = request
            share[runner].append(request)
            num_free -= 1
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
        if reply.unfit:
            ray.kill(self._actors.actors()[runner], no_restart=False)
            self._actors.set_actor_state(runner, healthy=False)
            self._lose_runner(runner, reply.unfit, report)

    def _lose_runner(self, runner: int, error: str, report: PoolReport) -> None:
        lost = self._running.pop(runner, {})
        self._num_died += 1
        told = f"env runner {runner} died with {len(lost)} episodes (death {self._num_died}): {error}"
        logger.warning("%s", told)
        report.failures += [FailedRollout(request, ENV_RUNNER_DIED, told) for request in lost.values()]
        report.counters["env_runners_died"] += 1

    def _look_for_ready(self) -> None:
        """Asks runners that do not play, and takes in those that answer."""
        if time.monotonic() - self._pinged_at >= _PING_INTERVAL_S:
            self._pinged_at = time.monotonic()
            for runner, actor in self._actors.actors().items():
                if not self._actors.is_actor_healthy(runner) and runner not in self._pings:
                    self._pings[runner] = actor.ping.remote()
        if not self._pings:
            return
        answered, _ = ray.wait(list(self._pings.values()), num_returns=len(self._pings), timeout=0.0)
        for runner in [runner for runner, ping in self._pings.items() if ping in answered]:
            try:
                ray.get(self._pings.pop(runner))
            except RayError as error:  # it has no place, or died as it started; Ray starts it again
                logger.debug("env runner %d does not play: %s", runner, type(error).__name__)
                continue
            self._actors.set_actor_state(runner, healthy=True)
            logger.info("env runner %d plays", runner)
            self.on_ready(runner, self._actors.actors()[runner])

    def _end_leaving(self) -> None:
        for runner in [runner for runner in self._leaving if not self._num_episodes(runner)]:
            if runner in self._called:
                continue
            was_playing = self._actors.is_actor_healthy(runner)
            actor = self._actors.remove_actor(runner)
            self._leaving.discard(runner)
            self._pings.pop(runner, None)
            self._running.pop(runner, None)
            self.on_end(runner)
            if was_playing:
                actor.stop.remote()
                actor.__ray_terminate__.remote()
            else:
                ray.kill(actor)
            self._counters["env_runners_removed"] += 1
            logger.info("env runner %d has ended: it is not wanted any more", runner)

"""How many env runners there are to be, from what the loop lacks.

| for so long | there is | then |
|---|---|---|
| ``upscale_delay_s`` | learners that wait, and episodes that wait for a place | places for all of these |
| ``downscale_delay_s`` | a batch that waits for the learners, and an env runner's places empty | one fewer |

Episodes in flight follow the replicas: ``max_episodes_per_replica`` for each that serves. With more env
runners more requests are open, for which Ray Serve adds replicas, which let more episodes in; with fewer the
other way round.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

from serl.config.sampling import RolloutSection, RunnerAutoscalingSection
from serl.rollout.runner_pool import EnvRunnerPool

logger = logging.getLogger(__name__)

# Of a longer time in which nobody looked, what it was like is not known.
_MAX_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class LoopState:
    """What the loop has and lacks.

    ``batch_waits``: a whole batch is there that no learner has taken. ``num_episodes`` run or wait for a
    place with one of ``num_env_runners``, those included that are still to start.
    """

    learners_wait: bool
    batch_waits: bool
    num_episodes: int
    num_env_runners: int
    num_replicas: int


class EnvRunnerScaling:
    """The decisions, from one `LoopState` after another; ``episodes_per_runner`` is that of each runner."""

    def __init__(self, settings: RunnerAutoscalingSection, episodes_per_runner: int) -> None:
        self._settings = settings
        self._episodes_per_runner = episodes_per_runner
        self._short_s = 0.0
        self._idle_s = 0.0

    def max_episodes(self, num_replicas: int) -> int:
        """How many may be in flight."""
        return num_replicas * self._settings.max_episodes_per_replica

    def decide(self, state: LoopState, seconds: float) -> int:
        """How many env runners are to be, after ``seconds`` more in ``state``.

        Seconds in which neither is true count for neither; one in which the other was true begins it anew.
        """
        settings, number = self._settings, state.num_env_runners
        episodes = min(state.num_episodes, self.max_episodes(state.num_replicas))
        needed = math.ceil(episodes / self._episodes_per_runner)
        more = min(needed, settings.max_env_runners)
        if state.learners_wait and more > number:
            self._short_s, self._idle_s = self._short_s + seconds, 0.0
            if self._short_s >= settings.upscale_delay_s:
                self._short_s = 0.0
                return more
        elif not state.learners_wait and state.batch_waits and needed < number:
            self._idle_s, self._short_s = self._idle_s + seconds, 0.0
            if self._idle_s >= settings.downscale_delay_s and number > settings.min_env_runners:
                self._idle_s = 0.0
                return number - 1
        return number


class PoolScaler:
    """Makes ``pool`` as large as ``rollout.autoscaling`` wants it; without that it stays as it is."""

    def __init__(self, rollout: RolloutSection, pool: EnvRunnerPool) -> None:
        self._pool = pool
        self._looked_at = time.monotonic()
        self._scaling: EnvRunnerScaling | None = None
        if rollout.autoscaling is not None:
            self._scaling = EnvRunnerScaling(rollout.autoscaling, rollout.max_concurrent_episodes)

    def look(self, learners_wait: bool, batch_waits: bool, num_replicas: int) -> None:
        """To be called again and again; see `LoopState`."""
        if self._scaling is None:
            return
        pool, now = self._pool, time.monotonic()
        seconds, self._looked_at = min(now - self._looked_at, _MAX_STEP_S), now
        pool.max_episodes = self._scaling.max_episodes(num_replicas)
        before, num_episodes = pool.num_wanted, pool.num_running + pool.num_queued
        state = LoopState(learners_wait, batch_waits, num_episodes, before, num_replicas)
        number = self._scaling.decide(state, seconds)
        if number != before:
            why = "learners wait" if number > before else "a batch waits for the learners"
            logger.info("%d env runners, %d before: %s; %s", number, before, why, pool.describe())
            pool.resize(number)

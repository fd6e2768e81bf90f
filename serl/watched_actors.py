"""Which actors of a run are watched, and what becomes of one that is silent.

| actor | heartbeat | what follows its end |
|---|---|---|
| env runner | `ping`, between two exchanges | Ray restarts it, the pool plays its episodes again |
| learner | `heartbeat`, beside an update | the run restarts its learners (`training.max_restarts`) |
| weight store | `ping` | a new one under the same name, with the newest snapshot |
| Serve's controller | `check_alive` | Ray restarts it, and it finds its replicas again |
| policy replica | Serve's health check, of its engine too, and `is_allocated` | Serve starts another one |
| gateway | Serve's health check | Serve starts another one |

Serve checks no replica that its restarted controller has not found yet, hence the second heartbeat of
replicas. What Serve gives up is deployed again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from functools import partial

import ray
from ray.actor import ActorHandle

from serl.config import ExperimentConfig
from serl.heartbeat import HeartbeatMonitor
from serl.learner.learner_group import SERLLearnerGroup
from serl.private.ray_serve import serve_controller, serve_replica
from serl.private.rllib import remote_learners
from serl.rollout.runner_pool import EnvRunnerPool
from serl.serving.names import ServingNames
from serl.serving.redeployer import Redeployer
from serl.serving.start import replace_weight_store, weight_store_of
from serl.serving.weight_store import WeightVersion, live_actors

logger = logging.getLogger(__name__)

# In a longer pause this process did not run, or was busy elsewhere.
_MAX_SECONDS_BETWEEN_LOOKS = 10.0


class ServingLostError(RuntimeError):
    """No policy replica is left, and none comes."""


class WatchedActors:
    """Watches the weight store of ``names`` and Serve's controller from the beginning, when replicas serve.

    ``snapshot`` is what a new weight store offers: that of the last broadcast.
    """

    def __init__(self, experiment: ExperimentConfig, names: ServingNames) -> None:
        self.snapshot: WeightVersion | None = None
        self._told: Counter[str] = Counter()
        self._names = names
        self._replica_start_timeout_s = experiment.serving.start_timeout_s
        self._num_wanted = experiment.serving.fewest_replicas
        self._num_serving = self._num_wanted
        self._unserved_s = 0.0
        self._looked_at = time.monotonic()
        self._replicas: set[str] = set()
        self._redeployer = Redeployer()
        self._monitor = HeartbeatMonitor(
            experiment.cluster.heartbeat_timeout_s, experiment.rollout.start_timeout_s
        )
        controller = serve_controller()
        self._monitor.watch(
            "serve_controllers",
            "Serve's controller",
            ping=controller.check_alive.remote,
            end=partial(ray.kill, controller, no_restart=False),
        )
        self._monitor.watch(
            "weight_stores",
            "the weight store",
            ping=lambda: weight_store_of(names).replicas.remote(),
            end=self._replace_weight_store,
            on_death=self._replace_weight_store,
            on_answer=self._look_for_replicas,
        )

    def take_counts(self) -> Counter[str]:
        """Who was killed for silence since the last call (``hung_env_runners``, …), and ``redeployments``."""
        counts = Counter({f"hung_{kind}": count for kind, count in self._monitor.num_hung.items()})
        counts["redeployments"] = self._redeployer.num_redeployed
        new, self._told = counts - self._told, counts
        return new

    def metrics(self) -> dict[str, float]:
        """How many replicas serve now, and how many of the fewest wanted do not: below ``serving/``."""
        missing = max(self._num_wanted - self._num_serving, 0)
        return {"serving/replicas": float(self._num_serving), "serving/missing_replicas": float(missing)}

    @property
    def num_serving(self) -> int:
        """How many policy replicas serve."""
        return self._num_serving

    def watch_env_runners(self, pool: EnvRunnerPool) -> None:
        """Those of ``pool`` that play, and whoever will."""
        pool.on_ready = self._watch_env_runner
        pool.on_end = lambda index: self._monitor.forget(f"env runner {index}")
        for index, runner in pool.playing().items():
            self._watch_env_runner(index, runner)

    def watch_learners(self, group: SERLLearnerGroup) -> None:
        """Those of ``group`` as it is now, in the place of its former ones."""
        for index, learner in enumerate(remote_learners(group)):
            end = partial(ray.kill, learner)
            self._monitor.watch("learners", f"learner {index}", ping=learner.heartbeat.remote, end=end)

    def require_serving(self) -> None:
        """Raises ServingLostError if no replica has lived for ``serving.start_timeout_s``.

        To be called every few seconds: those in which all processes were stopped do not count.
        """
        now = time.monotonic()
        self._unserved_s += min(now - self._looked_at, _MAX_SECONDS_BETWEEN_LOOKS)
        self._looked_at = now
        if self._unserved_s > self._replica_start_timeout_s:
            raise ServingLostError(
                f"no policy replica has served for {self._unserved_s:.0f} s, and none came within "
                f"serving.start_timeout_s = {self._replica_start_timeout_s:g} s: see the newest "
                "logs/serving-*.log, and the logs of Ray Serve's controller"
            )

    def close(self) -> None:
        self._redeployer.close()
        self._monitor.close()

    def _watch_env_runner(self, index: int, runner: ActorHandle) -> None:
        end = partial(ray.kill, runner, no_restart=False)
        self._monitor.watch("env_runners", f"env runner {index}", ping=runner.ping.remote, end=end)

    def _look_for_replicas(self, registered: dict[str, int]) -> None:
        serving = live_actors() & registered.keys()
        self._num_serving = len(serving)
        if serving:
            self._unserved_s = 0.0
        for name in self._replicas - serving:
            self._replicas.remove(name)
            self._monitor.forget(name)
        for name in serving - self._replicas:
            replica = serve_replica(name)
            end = partial(ray.kill, replica)
            self._monitor.watch("replicas", name, ping=replica.is_allocated.remote, end=end)
            self._replicas.add(name)

    def _replace_weight_store(self) -> None:
        logger.warning("the weight store is gone: starting another one")
        replace_weight_store(self._names, self.snapshot)

"""Which actors of a run are watched, and what becomes of one that is silent.

| actor | heartbeat | what follows its end |
|---|---|---|
| env runner | `ping`, between two exchanges | Ray restarts it, the pool plays its episodes again |
| learner | `heartbeat`, beside an update | the run restarts its learners (`training.max_restarts`) |
| weight store | `ping` | a new one under the same name, with the newest snapshot |
| Serve's controller | `check_alive` | Ray restarts it, and it finds its replicas again |
| policy replica | Serve's health check, of its engine too | Serve starts another one |
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from serl.heartbeat import HeartbeatMonitor
from serl.learner.learner_group import SERLLearnerGroup
from serl.private.ray_serve import serve_controller
from serl.private.rllib import remote_learners, worker_manager
from serl.serving.names import ServingNames
from serl.serving.start import replace_weight_store, weight_store_of
from serl.serving.weight_store import WeightVersion

logger = logging.getLogger(__name__)


class WatchedActors:
    """Watches the weight store of ``names`` and Serve's controller from the beginning.

    ``snapshot`` is what a new weight store offers: that of the last broadcast.
    """

    def __init__(self, timeout_s: float, names: ServingNames) -> None:
        self.snapshot: WeightVersion | None = None
        self._names = names
        self._monitor = HeartbeatMonitor(timeout_s)
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
            ping=lambda: weight_store_of(names).ping.remote(),
            end=self._replace_weight_store,
            on_death=self._replace_weight_store,
        )

    @property
    def num_hung(self) -> Counter[str]:
        """How many were killed for their silence, as ``hung_env_runners`` and so on."""
        return Counter({f"hung_{kind}": count for kind, count in self._monitor.num_hung.items()})

    def watch_env_runners(self, group: EnvRunnerGroup) -> None:
        for index, runner in worker_manager(group).actors().items():
            end = partial(ray.kill, runner, no_restart=False)
            self._monitor.watch("env_runners", f"env runner {index}", ping=runner.ping.remote, end=end)

    def watch_learners(self, group: SERLLearnerGroup) -> None:
        """Those of ``group`` as it is now, in the place of its former ones."""
        for index, learner in enumerate(remote_learners(group)):
            end = partial(ray.kill, learner)
            self._monitor.watch("learners", f"learner {index}", ping=learner.heartbeat.remote, end=end)

    def close(self) -> None:
        self._monitor.close()

    def _replace_weight_store(self) -> None:
        logger.warning("the weight store is gone: starting another one")
        replace_weight_store(self._names, self.snapshot)

"""Who ends a deployment whose driver is gone, on a cluster that goes on without it.

    driver ── owns ──▶ Beacon, which dies with the driver ◀── waits ── Custodian, which does not

Applications of Ray Serve outlive the driver that deployed them, and weights in shared memory outlive whoever
was killed together with all who would have freed them. A cluster that the driver started itself ends with it,
and needs nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from serl.serving.on_node import on_node
from serl.serving.weights_folder import remove_stale_folders

logger = logging.getLogger(__name__)

_ATTEMPTS, _ATTEMPT_INTERVAL_S = 10, 3.0
_TIDY_TIMEOUT_S = 30.0

# By application; a beacon without other handles would end.
_appointed: dict[str, tuple[ActorHandle, ActorHandle]] = {}


class Beacon:
    """Lives as long as its creator."""

    async def burn(self) -> None:
        await asyncio.Event().wait()


class Custodian:
    """Deletes ``application``, and what is named after it, once its beacon is dead; then ends itself.

    It finds the beacon by its name: arguments that are objects of Ray would end with whoever restarts it.
    """

    def __init__(self, application: str, namespace: str) -> None:
        self._application = application
        self._namespace = namespace
        self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._wait, name="waits for the beacon", daemon=True).start()

    def _wait(self) -> None:
        try:
            self._wait_for_death()
            logger.warning("the driver of %s is gone: ending what it left", self._application)
            self._delete()
            free_stale_weights()
        finally:
            ray.kill(self._self)

    def _wait_for_death(self) -> None:
        """However long the run is."""
        while True:
            try:
                beacon = ray.get_actor(_beacon_of(self._application), namespace=self._namespace)
                ray.get(beacon.burn.remote())
            except (ValueError, ActorDiedError):
                return
            except RayError as error:  # its node has gone, and it comes up on another one
                logger.warning("the beacon: %s", error)
            time.sleep(_ATTEMPT_INTERVAL_S)

    def _delete(self) -> None:
        for _ in range(_ATTEMPTS):
            try:
                delete_applications(self._application)
                return
            except (RayError, RuntimeError, TimeoutError):  # Serve's controller may just be replaced
                logger.exception("deleting %s", self._application)
            time.sleep(_ATTEMPT_INTERVAL_S)


def appoint_custodian(application: str, namespace: str) -> None:
    """From now on ``application`` ends when this process does, however that ends."""
    named = {"namespace": namespace, "num_cpus": 0, "max_restarts": -1}
    beacon = ray.remote(Beacon).options(name=_beacon_of(application), **named).remote()
    appoint = ray.remote(Custodian).options(name=f"custodian-{application}", lifetime="detached", **named)
    custodian = appoint.remote(application, namespace)
    _appointed[application] = cast(ActorHandle, custodian), cast(ActorHandle, beacon)


def dismiss_custodian(application: str) -> None:
    """``application`` has been deleted; there may be no custodian for it."""
    for actor in _appointed.pop(application, ()):
        ray.kill(actor)


def _beacon_of(application: str) -> str:
    return f"beacon-{application}"


def delete_applications(name: str) -> None:
    """The applications ``name`` and ``name-…`` of Ray Serve, if it runs; their replicas have ended then."""
    from ray import serve

    for application in serve.status().applications:
        if application == name or application.startswith(f"{name}-"):
            serve.delete(application)


def free_stale_weights() -> None:
    """On every node: what killed processes left in shared memory."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    answers = [on_node(remove_stale_folders, node).remote() for node in nodes]
    ray.wait(answers, num_returns=len(answers), timeout=_TIDY_TIMEOUT_S)

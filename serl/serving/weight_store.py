"""The actor that knows the newest weights; replicas ask it, so one that starts late is right from the start.

Imports neither torch nor vllm.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import list_named_actors

from serl.serving.engine import LoadReport
from serl.serving.names import ServingNames

MODEL_WEIGHTS = "the model's own"
# The kind of an update without weights: whom it is for gives its memory back until the next one.
SLEEP = "sleep"

_RETRY_INTERVAL_S = 0.1


def _new_broadcast() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """``update`` is what the receiver takes; ``replicas`` for whom it is (None: for whoever asks).

    ``broadcast`` tells two broadcasts of one ``weights_seq_no`` apart: learners that resumed from a
    checkpoint count from there again.
    """

    weights_seq_no: int
    update: dict[str, Any] = field(repr=False)
    replicas: frozenset[str] | None = None
    broadcast: str = field(default_factory=_new_broadcast)

    def is_for(self, replica: str) -> bool:
        return self.replicas is None or replica in self.replicas


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a replica serves: ``broadcast`` is a `WeightVersion`'s, or MODEL_WEIGHTS.

    ``seconds_fetch``: until the weights were on its host, before it began to load them.
    """

    broadcast: str
    report: LoadReport
    seconds_fetch: float = 0.0


class WeightStore:
    """Newest version, a snapshot for replicas that start later, and which replica has loaded what.

    Replicas register under the names of their actors. Run it as a Ray actor: `create_weight_store`.
    ``snapshot`` is that of a store in whose place this one comes.
    """

    def __init__(self, snapshot: WeightVersion | None = None) -> None:
        self._newest = self._snapshot = snapshot
        self._loaded: dict[str, Loaded] = {}
        self._num_workers: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._changed = asyncio.Condition()

    async def ping(self) -> bool:
        return True

    async def announce(self, version: WeightVersion) -> None:
        """Makes ``version`` the newest."""
        self._newest = version
        self._failures = {}
        await self._notify()

    async def withdraw(self) -> None:
        """Nobody could load the newest version: forgets it, so that replicas which start anew can serve."""
        self._newest = self._snapshot

    async def offer_snapshot(self, version: WeightVersion) -> None:
        """Sets what replicas load before they serve."""
        self._snapshot = version
        await self._notify()

    async def snapshot(self) -> WeightVersion | None:
        """The newest version that any replica can load at any time; None: the model's own weights."""
        return self._snapshot

    async def wait_for_other(self, replica: str, broadcast: str, timeout_s: float) -> WeightVersion | None:
        """What ``replica``, which serves ``broadcast``, is to serve instead; None if nothing came in time."""
        return await self._wait_for(lambda: self._other(replica, broadcast), timeout_s)

    async def register(self, replica: str, num_workers: int, loaded: Loaded) -> None:
        """``replica`` serves from now on, on ``num_workers`` workers."""
        self._num_workers[replica] = num_workers
        await self.acknowledge(replica, loaded)

    async def acknowledge(self, replica: str, loaded: Loaded) -> None:
        """``replica`` serves the weights of ``loaded``."""
        self._loaded[replica] = loaded
        await self._notify()

    async def report_failure(self, replica: str, error: str) -> None:
        """``replica`` could not load the newest version and ends."""
        self._failures[replica] = error
        await self.forget(replica)

    async def failures(self) -> dict[str, str]:
        """What the replicas said that could not load the newest version."""
        return self._failures

    async def forget(self, replica: str) -> None:
        """``replica`` is dead."""
        self._loaded.pop(replica, None)
        self._num_workers.pop(replica, None)
        await self._notify()

    async def replicas(self) -> dict[str, int]:
        """The registered replicas and their numbers of workers."""
        return dict(self._num_workers)

    async def wait_until_loaded(self, version: WeightVersion, timeout_s: float) -> dict[str, Loaded]:
        """What each replica serves for which ``version`` is, once all serve it or in time."""

        def found() -> dict[str, Loaded]:
            return {name: loaded for name, loaded in self._loaded.items() if version.is_for(name)}

        def all_loaded() -> bool | None:
            return all(loaded.broadcast == version.broadcast for loaded in found().values()) or None

        await self._wait_for(all_loaded, timeout_s)
        return found()

    def _other(self, replica: str, broadcast: str) -> WeightVersion | None:
        wanted = self._newest
        if wanted is not None and not wanted.is_for(replica):
            wanted = self._snapshot
        return None if wanted is None or wanted.broadcast == broadcast else wanted

    async def _wait_for(self, find: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while (found := find()) is None:
                    await self._changed.wait()
                return found
        except TimeoutError:
            return None

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def create_weight_store(names: ServingNames, snapshot: WeightVersion | None = None) -> ActorHandle:
    """A new store; it lives as long as its creator and the handle that is returned.

    Raises ValueError while there is one of that name.
    """
    options = {"name": names.weight_store, "namespace": names.namespace, "num_cpus": 0}
    store = ray.remote(WeightStore).options(**options, max_concurrency=1000).remote(snapshot)
    return cast(ActorHandle, store)


def find_weight_store(names: ServingNames, timeout_s: float) -> ActorHandle:
    """The store of the deployment ``names``, which may just be replaced. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while True:
        remaining_s = deadline - time.monotonic()
        try:
            store = ray.get_actor(names.weight_store, namespace=names.namespace)
            ray.get(store.ping.remote(), timeout=max(remaining_s, _RETRY_INTERVAL_S))
            return store
        except (ValueError, RayActorError, GetTimeoutError) as error:
            if remaining_s <= 0:
                raise TimeoutError(
                    f"there is no weight store {names.weight_store!r}, waited {timeout_s:g} s"
                ) from error
        time.sleep(_RETRY_INTERVAL_S)


def dead_replicas(replicas: Iterable[str]) -> list[str]:
    """Those of ``replicas`` whose actors have ended."""
    alive = live_actors()
    return [replica for replica in replicas if replica not in alive]


def live_actors() -> set[str]:
    """The names of all actors of the cluster that have one."""
    actors = cast(list[dict[str, str]], list_named_actors(all_namespaces=True))
    return {actor["name"] for actor in actors}

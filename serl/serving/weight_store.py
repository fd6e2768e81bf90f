"""The actor that knows the newest weights; replicas ask it, so one that starts late is right from the start.

Imports neither torch nor vllm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.util import list_named_actors

from serl.serving.engine import LoadReport
from serl.serving.names import ServingNames


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """``update`` is what the receiver takes; ``replicas`` for whom it is (None: for whoever asks)."""

    weights_seq_no: int
    update: dict[str, Any] = field(repr=False)
    replicas: frozenset[str] | None = None


class WeightStore:
    """Newest version, a snapshot for replicas that start later, and which replica has loaded what.

    Replicas register under the names of their actors. Run it as a Ray actor: `create_weight_store`.
    """

    def __init__(self) -> None:
        self._newest: WeightVersion | None = None
        self._snapshot: WeightVersion | None = None
        self._loaded: dict[str, LoadReport] = {}
        self._num_workers: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._changed = asyncio.Condition()

    async def announce(self, version: WeightVersion) -> None:
        """Makes ``version`` the newest. Raises ValueError if it is not newer."""
        if self._newest is not None and version.weights_seq_no <= self._newest.weights_seq_no:
            raise ValueError(
                f"weights {version.weights_seq_no} are not newer than weights {self._newest.weights_seq_no}"
            )
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

    async def wait_for_newer(
        self, replica: str, weights_seq_no: int, timeout_s: float
    ) -> WeightVersion | None:
        """The newest version for ``replica`` beyond ``weights_seq_no``; None if none came in time."""
        return await self._wait_for(lambda: self._newer(replica, weights_seq_no), timeout_s)

    async def register(self, replica: str, num_workers: int, report: LoadReport) -> None:
        """``replica`` serves from now on, with the weights of ``report``, on ``num_workers`` workers."""
        self._num_workers[replica] = num_workers
        await self.acknowledge(replica, report)

    async def acknowledge(self, replica: str, report: LoadReport) -> None:
        """``replica`` serves the weights of ``report``."""
        self._loaded[replica] = report
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

    async def wait_until_loaded(self, weights_seq_no: int, timeout_s: float) -> dict[str, LoadReport]:
        """The last report of each registered replica, once all have loaded ``weights_seq_no`` or in time."""

        def all_loaded() -> bool | None:
            reports = self._loaded.values()
            return all(report.weights_seq_no >= weights_seq_no for report in reports) or None

        await self._wait_for(all_loaded, timeout_s)
        return dict(self._loaded)

    def _newer(self, replica: str, weights_seq_no: int) -> WeightVersion | None:
        for version in (self._newest, self._snapshot):
            if version is not None and version.weights_seq_no > weights_seq_no:
                if version.replicas is None or replica in version.replicas:
                    return version
        return None

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


def create_weight_store(names: ServingNames) -> ActorHandle:
    """A new store; it lives as long as its creator and the handle that is returned."""
    options = {"name": names.weight_store, "namespace": names.namespace, "num_cpus": 0}
    store = ray.remote(WeightStore).options(**options, max_concurrency=1000).remote()
    return cast(ActorHandle, store)


def find_weight_store(names: ServingNames) -> ActorHandle:
    """The store of the deployment ``names``. Raises ValueError if there is none."""
    return ray.get_actor(names.weight_store, namespace=names.namespace)


def dead_replicas(replicas: Iterable[str]) -> list[str]:
    """Those of ``replicas`` whose actors have ended."""
    alive = live_actors()
    return [replica for replica in replicas if replica not in alive]


def live_actors() -> set[str]:
    """The names of all actors of the cluster that have one."""
    actors = cast(list[dict[str, str]], list_named_actors(all_namespaces=True))
    return {actor["name"] for actor in actors}

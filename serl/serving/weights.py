"""Getting new weights from a learner into every replica."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from serl.serving.names import ServingNames
from serl.serving.transfer import Transfer, make_sender
from serl.serving.transfer.sender import Weights
from serl.serving.weight_store import SLEEP, Loaded, WeightVersion, dead_replicas, find_weight_store

logger = logging.getLogger(__name__)

# How often a publisher that waits looks whether a silent replica still lives.
_LIVENESS_INTERVAL_S = 0.5


class WeightLoadError(RuntimeError):
    """Replicas could not load the published weights; the message says why."""


@dataclass(frozen=True, slots=True)
class BroadcastStats:
    """One broadcast; the seconds of fetching, loading and of the pause are those of the slowest replica."""

    seconds_transport: float
    seconds_fetch: float
    seconds_load: float
    seconds_paused: float
    num_bytes: int
    num_replicas: int


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A broadcast that all replicas have loaded; ``snapshot`` is what later ones can load.

    With nccl and ipc that is the version before until the present one is written (None: the first one is).
    """

    stats: BroadcastStats
    snapshot: WeightVersion | None


class WeightPublisher:
    """Publishes the weights of one learner to the deployment ``names``.

    ``timeout_s`` is how long one `publish` may take. With ``transfer`` nccl or ipc a copy also goes to
    shared memory, for replicas that start later.
    """

    _store: ActorHandle  # that of the present broadcast: one that ends is replaced under its name

    def __init__(self, names: ServingNames, transfer: Transfer, timeout_s: float) -> None:
        self._names = names
        self._timeout_s = timeout_s
        self._sender = make_sender(transfer, names.application)
        self._published: int | None = None
        self._replicas: dict[str, int] = {}
        self._snapshot: WeightVersion | None = None
        self._writing: Future[dict[str, Any]] | None = None

    def publish(self, weights: Weights, weights_seq_no: int) -> Broadcast:
        """Returns once every live replica serves ``weights``, known as ``weights_seq_no``.

        Replicas that die meanwhile are not waited for: whatever replaces them loads the newest weights before
        it serves. What is in shared memory is announced again if the weight store is replaced meanwhile.
        Raises TimeoutError, naming the replicas that did not load the weights, WeightLoadError if all of them
        failed to, or made a broadcast fail, UpdateError if there are no tensors, RayActorError if the store
        ends in a broadcast that cannot be repeated, and ValueError for a ``weights_seq_no`` that is not newer
        than this learner's last one.
        """
        if self._published is not None and weights_seq_no <= self._published:
            raise ValueError(f"weights {weights_seq_no} are not newer than weights {self._published}")
        started = time.monotonic()
        deadline = started + self._timeout_s
        self._wait_for_snapshot(deadline)
        self._store = find_weight_store(self._names, self._timeout_s)
        replicas = self._live_replicas()
        update = self._sender.prepare(weights, weights_seq_no, replicas)
        is_repeatable = update["kind"] == "shared_memory"
        version = WeightVersion(weights_seq_no, update, None if is_repeatable else frozenset(replicas))
        while True:
            try:
                stats = self._broadcast(version, set(replicas), started, deadline)
                break
            except RayActorError:
                if not is_repeatable:
                    raise
                logger.warning("the weight store ended: announcing weights %d to the next", weights_seq_no)
                self._store = find_weight_store(self._names, max(0.0, deadline - time.monotonic()))
        self._published = weights_seq_no
        self._writing = self._sender.snapshot()
        self._writing.add_done_callback(functools.partial(self._offer_snapshot, version, self._store))
        return Broadcast(stats, self._snapshot)

    def put_to_sleep(self) -> None:
        """Returns once every live replica has given its memory back; the next `publish` wakes them.

        Raises TimeoutError, naming the replicas that did not.
        """
        deadline = time.monotonic() + self._timeout_s
        self._store = find_weight_store(self._names, self._timeout_s)
        replicas = set(self._live_replicas())
        rest = WeightVersion(self._published or 0, {"kind": SLEEP}, frozenset(replicas))
        self._ask(self._store.announce.remote(rest))
        self._wait_until_loaded(rest, replicas, deadline)

    def close(self) -> None:
        """Frees what is held for the replicas; nothing can be published afterwards."""
        self._sender.close()

    def _offer_snapshot(
        self, version: WeightVersion, store: ActorHandle, written: Future[dict[str, Any]]
    ) -> None:
        if written.exception() is None:
            self._snapshot = replace(version, update=written.result(), replicas=None)
            store.offer_snapshot.remote(self._snapshot)

    def _wait_for_snapshot(self, deadline: float) -> None:
        """Raises what writing the last one raised, or TimeoutError."""
        if self._writing is None:
            return
        if not wait([self._writing], max(0.0, deadline - time.monotonic())).done:
            raise TimeoutError(
                f"weights {self._published} were not written to shared memory within {self._timeout_s:g} s"
            )
        self._writing.result()
        self._writing = None

    def _broadcast(
        self, version: WeightVersion, expected: set[str], started: float, deadline: float
    ) -> BroadcastStats:
        self._ask(self._store.announce.remote(version))
        self._sender.transmit(
            deadline - time.monotonic(), functools.partial(self._raise_if_any_failed, version)
        )
        seconds_transport = time.monotonic() - started
        replicas = self._wait_until_loaded(version, expected, deadline)
        if not replicas:
            self._raise_if_all_failed(version.weights_seq_no)
        reports = [loaded.report for loaded in replicas]
        return BroadcastStats(
            seconds_transport=seconds_transport,
            seconds_fetch=max((loaded.seconds_fetch for loaded in replicas), default=0.0),
            seconds_load=max((report.seconds_load for report in reports), default=0.0),
            seconds_paused=max((report.seconds_paused for report in reports), default=0.0),
            num_bytes=version.update["num_bytes"],
            num_replicas=len(reports),
        )

    def _raise_if_any_failed(self, version: WeightVersion) -> None:
        said = self._what_replicas_said()
        if said:
            number = version.weights_seq_no
            raise WeightLoadError(f"not all replicas receive the broadcast of weights {number}: {said}")

    def _raise_if_all_failed(self, weights_seq_no: int) -> None:
        said = self._what_replicas_said()
        if said:
            self._ask(self._store.withdraw.remote())
            raise WeightLoadError(f"no replica could load weights {weights_seq_no}: {said}")

    def _what_replicas_said(self) -> str:
        failures = self._ask(self._store.failures.remote())
        return "; ".join(f"{replica}: {error}" for replica, error in sorted(failures.items()))

    def _live_replicas(self) -> dict[str, int]:
        """Those registered, and those of the last broadcast, whom a new store may not know yet."""
        known = self._replicas | self._ask(self._store.replicas.remote())
        dead = dead_replicas(known)
        self._forget(dead)
        self._replicas = {name: num_workers for name, num_workers in known.items() if name not in dead}
        return self._replicas

    def _forget(self, replicas: Iterable[str]) -> None:
        for replica in replicas:
            self._ask(self._store.forget.remote(replica))

    def _ask(self, answer: ray.ObjectRef) -> Any:
        try:
            return ray.get(answer, timeout=self._timeout_s)
        except GetTimeoutError as error:
            raise TimeoutError(
                f"the weight store {self._names.weight_store!r} did not answer within {self._timeout_s:g} s"
            ) from error

    def _wait_until_loaded(self, version: WeightVersion, expected: set[str], deadline: float) -> list[Loaded]:
        """``expected`` are replicas that answer unless they die, registered with this store or not yet."""
        while True:
            remaining_s = deadline - time.monotonic()
            wait_s = max(0.0, min(_LIVENESS_INTERVAL_S, remaining_s))
            loaded = self._ask(self._store.wait_until_loaded.remote(version, wait_s))
            behind = {name for name, found in loaded.items() if found.broadcast != version.broadcast}
            behind |= expected - loaded.keys()
            if not behind:
                return list(loaded.values())
            if remaining_s <= 0:
                lacking = f"weights {version.weights_seq_no} were not loaded"
                if version.update["kind"] == SLEEP:
                    lacking = "memory was not given back"
                raise TimeoutError(
                    f"{lacking} within {self._timeout_s:g} s by "
                    f"{len(behind)} of {len(behind | loaded.keys())} replicas: {', '.join(sorted(behind))}"
                )
            dead = dead_replicas(behind)
            expected -= set(dead)
            self._forget(dead)
            if expected - loaded.keys():
                time.sleep(_LIVENESS_INTERVAL_S)

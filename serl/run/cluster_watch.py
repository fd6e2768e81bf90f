"""Notices that the Ray cluster is gone, or answers no more, long before Ray does.

Ray itself waits a minute for its GCS, and then ends the process that waits, with nothing tidied up.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from serl.run.processes import descendants, name_of

_SERVERS = {"gcs_server": "Ray's GCS", "raylet": "Ray's raylet"}
_ASK_INTERVAL_S = 5.0
_TICK_S = 1.0
# Ray waits half a minute for servers that it starts, and is then started once more.
_SERVERS_MISSING_S = 40.0
_START_TIMEOUT_S = 180.0
# Ray takes a node for dead after five checks that fail, 3 s apart.
_CHECKS, _CHECK_INTERVAL_S = 5, 3.0


def prepare_watch(timeout_s: float) -> None:
    """To be called before Ray starts or joins, with the ``timeout_s`` of `watched_cluster`.

    What the environment says of Ray's own timeouts already stays.
    """
    # Of one check, so that a raylet which hangs counts as dead in time to be told.
    check_s = max(0.8 * timeout_s / _CHECKS - _CHECK_INTERVAL_S, 1.0)
    os.environ.setdefault("RAY_health_check_timeout_ms", str(round(1000 * check_s)))
    # Until Ray ends this process by itself.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(math.ceil(timeout_s) + 60))


@contextmanager
def watched_start(on_lost: Callable[[str], object]) -> Iterator[None]:
    """Calls ``on_lost`` in a thread, with a sentence, if Ray does not come to the end of its start.

    Where it waits without a deadline it does so outside of Python, where no exception reaches it.
    """
    over = threading.Event()
    threading.Thread(target=_watch_start, args=(over, on_lost), name="watches Ray start", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch_start(over: threading.Event, on_lost: Callable[[str], object]) -> None:
    servers: dict[int, str] = {}
    waited_s = missing_s = 0.0
    while not over.wait(_TICK_S):
        living = {pid: server for pid in descendants() if (server := _SERVERS.get(name_of(pid)))}
        if living.keys() - servers.keys():
            servers, missing_s = living, 0.0
        waited_s += _TICK_S
        missing_s = missing_s + _TICK_S if servers.keys() - living.keys() else 0.0
        if missing_s > _SERVERS_MISSING_S:
            pid = min(servers.keys() - living.keys())
            on_lost(f"{servers[pid]} (process {pid}) ended while Ray was starting")
            return
        if waited_s > _START_TIMEOUT_S:
            on_lost(f"Ray did not start within {_START_TIMEOUT_S:g} s")
            return


@contextmanager
def watched_cluster(on_lost: Callable[[str], object], timeout_s: float) -> Iterator[None]:
    """Calls ``on_lost`` in a thread, with a sentence, if the cluster that this process is part of is lost.

    That is: its GCS or its raylet, if they run below this process, has died; the GCS has not answered for
    ``timeout_s``; or there is no node left that lives.
    """
    watch = _Watch(on_lost, timeout_s)
    for pid in descendants():
        if server := _SERVERS.get(name_of(pid)):
            threading.Thread(target=watch.wait_for_death, args=(pid, server), daemon=True).start()
    asking = threading.Thread(target=watch.ask, name="asks the GCS", daemon=True)
    asking.start()
    threading.Thread(target=watch.wait_for_silence, name="watches the GCS", daemon=True).start()
    try:
        yield
    finally:
        watch.over.set()
        # Ray must not be shut down under a question; one that is not answered is of no use any more.
        asking.join(timeout=2.0)


class _Watch:
    def __init__(self, on_lost: Callable[[str], object], timeout_s: float) -> None:
        self.over = threading.Event()
        self._on_lost = on_lost
        self._timeout_s = timeout_s
        self._silent_s = 0.0

    def wait_for_death(self, pid: int, server: str) -> None:
        """Of a child of this process, which stays for Ray to reap."""
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            ended = None
        if ended is None:
            how = "is gone"
        elif ended.si_code == os.CLD_EXITED:
            how = f"has ended with {ended.si_status}"
        else:
            how = f"was ended by {signal.Signals(ended.si_status).name}"
        self._lost(f"{server} (process {pid}) {how}")

    def ask(self) -> None:
        """Asks for the nodes again and again, for as long as that takes."""
        while not self.over.wait(_ASK_INTERVAL_S):
            if not any(node["Alive"] for node in ray.nodes()):
                self._lost("no node of the Ray cluster is alive: its raylet has hung or has lost the GCS")
            self._silent_s = 0.0

    def wait_for_silence(self) -> None:
        """Seconds are counted, not measured: in those that this process was stopped for nobody was silent."""
        while not self.over.wait(_TICK_S):
            self._silent_s += _TICK_S
            if self._silent_s > self._timeout_s + _ASK_INTERVAL_S:
                self._lost(f"Ray's GCS has not answered for {self._timeout_s:g} s")
                return

    def _lost(self, what: str) -> None:
        if not self.over.is_set():
            # What follows from it is not told.
            self.over.set()
            self._on_lost(what)

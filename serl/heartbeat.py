"""`HeartbeatMonitor`: asks every actor of a run whether it still answers, and ends those that do not.

An actor that dies is missed at once by whoever calls it; one that hangs is not. The monitor only kills: what
it killed is replaced by whoever replaces the dead.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Watched:
    kind: str
    ping: Callable[[], Any]
    end: Callable[[], None]
    on_death: Callable[[], None] | None
    on_answer: Callable[[Any], None] | None
    answer: Any = None
    silent_s: float = 0.0
    has_answered: bool = False


class HeartbeatMonitor:
    """A thread that pings what it `watch`es, once a second; ``num_hung`` counts by kind what it ended.

    An actor must answer within ``timeout_s``; one that has not answered since it was started or restarted,
    and may be importing torch or loading data, within ``start_timeout_s``. Seconds are counted, not measured:
    in those that all processes were stopped for nobody was silent.
    """

    def __init__(self, timeout_s: float, start_timeout_s: float) -> None:
        self.num_hung: Counter[str] = Counter()
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    def watch(
        self,
        kind: str,
        name: str,
        ping: Callable[[], Any],
        end: Callable[[], None],
        on_death: Callable[[], None] | None = None,
        on_answer: Callable[[Any], None] | None = None,
    ) -> None:
        """Watches the actor ``name`` in the place of another one of that name.

        ``ping`` returns a reference to an answer, which ``on_answer`` is called with; ``end`` is called when
        there is none in time, ``on_death`` when the actor is found dead. All in the monitor's thread.
        """
        with self._lock:
            self._watched[name] = _Watched(kind, ping, end, on_death, on_answer)

    def forget(self, name: str) -> None:
        with self._lock:
            self._watched.pop(name, None)

    def close(self) -> None:
        """Ends the thread; what it is doing comes to its end."""
        self._closing.set()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL_S):
            with self._lock:
                watched = list(self._watched.items())
            for name, actor in watched:
                try:
                    self._look_after(name, actor)
                except (RayError, TimeoutError, ValueError):
                    logger.exception("the heartbeat of %s", name)

    def _look_after(self, name: str, actor: _Watched) -> None:
        if actor.answer is None:
            actor.answer, actor.silent_s = actor.ping(), 0.0
        else:
            actor.silent_s += _INTERVAL_S
        if ray.wait([actor.answer], timeout=0.0)[0]:
            answer, actor.answer = actor.answer, None
            self._take(name, actor, answer)
            return
        limit_s = self._timeout_s if actor.has_answered else self._start_timeout_s
        if actor.silent_s >= limit_s:
            logger.error("%s has not answered for %g s: killing it", name, limit_s)
            self.num_hung[actor.kind] += 1
            actor.answer, actor.has_answered = None, False
            actor.end()

    def _take(self, name: str, actor: _Watched, answer: Any) -> None:
        try:
            said = ray.get(answer, timeout=self._timeout_s)
        except RayError as error:
            if actor.has_answered:
                logger.info("%s does not live: %s", name, type(error).__name__)
            actor.has_answered = False
            if actor.on_death is not None:
                actor.on_death()
        else:
            actor.has_answered = True
            if actor.on_answer is not None:
                actor.on_answer(said)

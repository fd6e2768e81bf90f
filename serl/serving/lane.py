"""A client's end of the conversation with a replica; see `serl.serving.streams` for the other one.

A Serve call costs about as much processor time as a small model's answer, so requests travel together: all
those of one turn of the asyncio loop, and a few of them wait for company (`_MAX_WAIT_S` at most).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import Any

import grpc
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serl.private.ray_serve import session_stream
from serl.serving.messages import Answer, Request, make_request
from serl.types import Sampling

logger = logging.getLogger(__name__)

# A call leaves at once if it carries this share of the requests that are open. So only a few among many wait,
# and for no longer than a step or two of a small engine.
_SHARE_THAT_LEAVES_AT_ONCE = 1 / 8
_MAX_WAIT_S = 0.03


class ReplicaLost(Exception):
    """The replica that had the request ended before it answered."""


@dataclass(eq=False, slots=True)
class _Call:
    """An open Serve call; ``replica`` is None until its first message tells."""

    replica: str | None = None


@dataclass(slots=True)
class _Waiting:
    answer: asyncio.Future[Answer]
    call: _Call | None = None


class Lane:
    """The requests of some sessions, which one replica gets as long as the set of replicas stays the same.

    An answer arrives on the newest call that reached its replica, not on the call that brought the request.
    So a request is lost as soon as no open call is left that leads, or may lead, to its replica.
    """

    def __init__(self, handle: DeploymentHandle[Any], session_id: str) -> None:
        self._stream = session_stream(handle, "generate", session_id)
        self._client_id = f"{uuid.uuid4().hex}-{session_id}"
        self._numbers = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._unsent: list[Request] = []
        self._abandoned: list[int] = []
        self._open_calls: dict[_Call, asyncio.Task[None]] = {}
        self._next_send: asyncio.Handle | None = None

    async def ask(self, prompt_ids: list[int], sampling: Sampling) -> Answer:
        """The answer to one request. Raises ReplicaLost if its replica ends first."""
        key = next(self._numbers)
        waiting = _Waiting(asyncio.get_running_loop().create_future())
        self._waiting[key] = waiting
        self._unsent.append(make_request(key, prompt_ids, sampling))
        self._schedule_send()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if self._waiting.pop(key, None) is not None:
                self._abandoned.append(key)
                self._schedule_send()
            raise

    def _schedule_send(self) -> None:
        loop = asyncio.get_running_loop()
        if len(self._unsent) < _SHARE_THAT_LEAVES_AT_ONCE * len(self._waiting):
            if self._next_send is None:
                self._next_send = loop.call_later(_MAX_WAIT_S, self._send)
        elif self._next_send is None or isinstance(self._next_send, asyncio.TimerHandle):
            if self._next_send is not None:
                self._next_send.cancel()
            self._next_send = loop.call_soon(self._send)

    def _send(self) -> None:
        self._next_send = None
        requests = [request for request in self._unsent if request.key in self._waiting]
        abandoned = self._abandoned
        self._unsent, self._abandoned = [], []
        call = _Call()
        for request in requests:
            self._waiting[request.key].call = call
        conversation = self._converse(call, requests, abandoned)
        self._open_calls[call] = asyncio.get_running_loop().create_task(conversation)

    async def _converse(self, call: _Call, requests: list[Request], abandoned: list[int]) -> None:
        try:
            # `stream=True` makes it a generator, which the handle's type does not say.
            messages: Any = self._stream.remote(self._client_id, requests, abandoned)
            async for message in messages:
                if call.replica is None:
                    call.replica = message.replica
                    self._fail_lost_requests()
                for answer in message.answers:
                    self._receive(answer)
        except (RayActorError, RayServeException, grpc.aio.AioRpcError) as error:
            logger.warning("a call to a policy replica broke: %s: %s", type(error).__name__, error)
            self._fail([key for key, waiting in self._waiting.items() if _leads_to(call, waiting)])
        finally:
            del self._open_calls[call]
            self._fail_lost_requests()

    def _receive(self, answer: Answer) -> None:
        waiting = self._waiting.pop(answer.key, None)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(answer)

    def _fail_lost_requests(self) -> None:
        reached = {call.replica for call in self._open_calls}
        if None not in reached:
            sent = [(key, waiting.call) for key, waiting in self._waiting.items() if waiting.call is not None]
            self._fail([key for key, call in sent if call.replica not in reached])

    def _fail(self, keys: list[int]) -> None:
        for key in keys:
            waiting = self._waiting.pop(key)
            if not waiting.answer.done():
                waiting.answer.set_exception(ReplicaLost())


def _leads_to(broken: _Call, waiting: _Waiting) -> bool:
    """Whether ``waiting`` is lost with the call ``broken``."""
    call = waiting.call
    return call is not None and (
        call is broken or (call.replica is not None and call.replica == broken.replica)
    )

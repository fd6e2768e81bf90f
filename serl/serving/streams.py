"""A replica's end of the conversation with its clients: one open stream of answers for each client.

Each call of a client brings new requests and takes over the stream of its call before, which ends. So
whatever finished in one step of the engine goes to a client in one message, and comes back as one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from serl.serving.engine import Deliver
from serl.serving.messages import Answer, Answers, Request


class Engine(Protocol):
    """What `EngineThread` does for the streams."""

    def submit(self, requests: list[Request], deliver: Deliver) -> list[str]: ...

    def abort(self, names: list[str]) -> None: ...


@dataclass(eq=False, slots=True)
class _Stream:
    """``finished`` waits to be sent; after ``superseded`` nothing more will come."""

    finished: list[Answer] = field(default_factory=list)
    superseded: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False, slots=True)
class _Client:
    """``open_requests``: the client's number of a request and the engine's name of it."""

    loop: asyncio.AbstractEventLoop
    newest: _Stream
    open_requests: dict[int, str] = field(default_factory=dict)

    def deliver(self, answers: list[Answer]) -> None:
        """Called in the engine's thread, with all that one step finished."""
        self.loop.call_soon_threadsafe(self._receive, answers)

    def _receive(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.open_requests.pop(answer.key, None)
        self.newest.finished += answers
        self.newest.changed.set()


class ClientStreams:
    """Runs on one asyncio loop; ``replica`` is what clients call this replica."""

    def __init__(self, engine: Engine, replica: str) -> None:
        self._engine = engine
        self._replica = replica
        self._clients: dict[str, _Client] = {}

    async def converse(
        self, client_id: str, requests: list[Request], abandoned: list[int]
    ) -> AsyncGenerator[Answers, None]:
        """Yields answers to ``requests`` and to older ones of the client until its next call or the last.

        ``abandoned`` are numbers of requests that the client no longer waits for. If the client goes away
        its requests are aborted.
        """
        client, stream = self._take_over(client_id)
        try:
            self._abandon(client, abandoned)
            names = self._engine.submit(requests, client.deliver)
            client.open_requests.update(zip((request.key for request in requests), names, strict=True))
            yield Answers(self._replica, [])
            while stream.finished or (client.open_requests and not stream.superseded):
                if stream.finished:
                    finished, stream.finished = stream.finished, []
                    yield Answers(self._replica, finished)
                else:
                    stream.changed.clear()
                    await stream.changed.wait()
        finally:
            if client.newest is stream:
                self._engine.abort(list(client.open_requests.values()))
                del self._clients[client_id]

    def _take_over(self, client_id: str) -> tuple[_Client, _Stream]:
        stream = _Stream()
        client = self._clients.get(client_id)
        if client is None:
            client = self._clients[client_id] = _Client(asyncio.get_running_loop(), stream)
        else:
            client.newest.superseded = True
            client.newest.changed.set()
            client.newest = stream
        return client, stream

    def _abandon(self, client: _Client, abandoned: list[int]) -> None:
        names = [client.open_requests.pop(key, None) for key in abandoned]
        self._engine.abort([name for name in names if name is not None])

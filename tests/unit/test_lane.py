"""Which requests of a client travel together. What a replica makes of them is tested with a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from serl.serving.lane import Lane
from serl.serving.messages import Answers, Request
from serl.types import Sampling

SAMPLING = Sampling(temperature=1.0, max_tokens=4, stop=(), seed=None)


class SilentHandle:
    """A deployment that takes every call and answers none."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def options(self, **options: Any) -> SilentHandle:
        return self

    async def remote(
        self, client_id: str, requests: list[Request], abandoned: list[int]
    ) -> AsyncIterator[Answers]:
        self.calls.append(len(requests))
        yield Answers("replica", [])
        await asyncio.Event().wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not condition():
            await asyncio.sleep(0.005)


async def asked(lane: Lane, number: int, turns: int = 5) -> list[asyncio.Task]:
    """``number`` requests of one turn of the loop, and some turns more."""
    tasks = [asyncio.create_task(lane.ask([1], SAMPLING)) for _ in range(number)]
    for _ in range(turns):
        await asyncio.sleep(0)
    return tasks


def test_requests_of_one_turn_travel_in_one_call() -> None:
    async def play() -> None:
        handle = SilentHandle()
        await asked(Lane(handle, "0"), 16)  # type: ignore[arg-type]
        assert handle.calls == [16]

    asyncio.run(play())


def test_a_few_requests_among_many_wait_for_company_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        monkeypatch.setattr("serl.serving.lane._MAX_WAIT_S", 3600.0)
        handle = SilentHandle()
        lane = Lane(handle, "0")  # type: ignore[arg-type]
        await asked(lane, 16)
        await asked(lane, 1)  # 1 of 17 is less than an eighth
        assert handle.calls == [16]
        await asked(lane, 2)  # 3 of 19 is more
        assert handle.calls == [16, 3]
        monkeypatch.setattr("serl.serving.lane._MAX_WAIT_S", 0.01)
        await asked(lane, 1)
        await until(lambda: handle.calls == [16, 3, 1])

    asyncio.run(play())


def test_a_request_that_is_given_up_is_told_to_the_replica() -> None:
    async def play() -> None:
        handle = SilentHandle()
        lane = Lane(handle, "0")  # type: ignore[arg-type]
        (task,) = await asked(lane, 1)
        task.cancel()
        await until(lambda: handle.calls == [1, 0])

    asyncio.run(play())

"""Runs an engine that must stay in one thread there, whichever thread it is called from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from envs.alfworld.engine import Frame
from envs.alfworld.game import Game


class ClosableEngine(Protocol):
    def reset(self) -> Frame: ...

    def step(self, command: str) -> Frame: ...

    def close(self) -> None: ...


class OneThreadEngine:
    """One episode whose every call, the construction included, runs in the only thread of ``executor``."""

    def __init__(
        self, make_engine: Callable[[Game], ClosableEngine], game: Game, executor: ThreadPoolExecutor
    ):
        self._executor = executor
        self._engine = executor.submit(make_engine, game).result()

    def reset(self) -> Frame:
        return self._executor.submit(self._engine.reset).result()

    def step(self, command: str) -> Frame:
        return self._executor.submit(self._engine.step, command).result()

    def close(self) -> None:
        self._executor.submit(self._engine.close).result()

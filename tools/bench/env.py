"""The native ALFWorld engine against the original one, TextWorld, on the same games; then WebShop."""

from __future__ import annotations

import argparse
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import Game
from envs.alfworld.game_sources import GameSource, open_source
from envs.alfworld.pack import PackError
from envs.alfworld.textworld_engine import MissingTextWorldError, TextWorldEngine
from tools.bench import webshop
from tools.bench.arguments import BenchmarkInputError
from tools.bench.figures import Figures

STEP_GOAL_MS = 0.1
LOAD_GOAL_MS = 20.0
EPISODE_GOAL_MB = 1.0

_SPLIT = "train"
_STATM = Path("/proc/self/statm")


@dataclass(slots=True)
class _Times:
    """Seconds of one repetition: every load up to the first observation, and every step."""

    loads: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    @property
    def load_ms(self) -> float:
        return 1000.0 * sum(self.loads) / len(self.loads)

    @property
    def step_ms(self) -> float:
        return 1000.0 * sum(self.steps) / len(self.steps)


def run(options: argparse.Namespace, figures: Figures) -> None:
    source = _open(options.data)
    has_textworld = _has_textworld(source, figures)
    figures.note(
        f"{options.games} games of {options.data}, {options.steps} steps each, "
        f"{options.repetitions} repetitions"
    )
    # First: later episodes would grow into memory that earlier ones have left.
    _report_memory(source, options, figures, has_textworld)
    native, original, num_different = [], [], 0
    for repetition in range(options.repetitions):
        times = _Times(), _Times()
        for task_id in _task_ids(source, options.games, repetition):
            game, frames = _play_native(source, task_id, options.steps, repetition, times[0])
            if has_textworld:
                num_different += _play_original(game, frames, times[1])
        native.append(times[0])
        original.append(times[1])
    _report_native(native, figures)
    if has_textworld:
        _report_ratios(native, original, figures)
        figures.note(f"  steps with another answer than TextWorld's: {num_different}")
    webshop.run(options, figures)


def _open(data: str) -> GameSource:
    try:
        return open_source(data)
    except (FileNotFoundError, PackError) as error:
        raise BenchmarkInputError(str(error)) from error


def _has_textworld(source: GameSource, figures: Figures) -> bool:
    """Also loads what all games share, which happens once a process."""
    game = source.load(_task_ids(source, 1, seed=0)[0])
    try:
        TextWorldEngine(game).close()
    except MissingTextWorldError as error:
        figures.note(f"not compared with TextWorld: {error}")
        return False
    return True


def _task_ids(source: GameSource, number: int, seed: int) -> list[str]:
    records = source.scan(_SPLIT).records
    if len(records) < number:
        raise BenchmarkInputError(f"{number} games are asked for, split {_SPLIT!r} has {len(records)}")
    return [record.task_id for record in random.Random(seed).sample(records, number)]


def _play_native(
    source: GameSource, task_id: str, num_steps: int, seed: int, times: _Times
) -> tuple[Game, list[tuple[str, Frame]]]:
    """Random admissible commands; returns the game, the commands and what they showed."""
    started = time.perf_counter()
    game = source.load(task_id)
    engine = Engine(game)
    frame = engine.reset()
    times.loads.append(time.perf_counter() - started)
    frames = []
    draw = random.Random(f"{seed} {task_id}")
    for _ in range(num_steps):
        command = draw.choice(frame.admissible_commands)
        started = time.perf_counter()
        frame = engine.step(command)
        times.steps.append(time.perf_counter() - started)
        frames.append((command, frame))
    return game, frames


def _play_original(game: Game, frames: Sequence[tuple[str, Frame]], times: _Times) -> int:
    """The same commands in TextWorld; returns how many frames differ."""
    started = time.perf_counter()
    engine = TextWorldEngine(game)
    engine.reset()
    times.loads.append(time.perf_counter() - started)
    num_different = 0
    for command, frame in frames:
        started = time.perf_counter()
        answer = engine.step(command)
        times.steps.append(time.perf_counter() - started)
        num_different += answer != frame
    engine.close()
    return num_different


def _report_native(native: Sequence[_Times], figures: Figures) -> None:
    steps, loads = [times.step_ms for times in native], [times.load_ms for times in native]
    figures.add("native step", steps, "ms", at_most=STEP_GOAL_MS)
    figures.add("native load", loads, "ms", at_most=LOAD_GOAL_MS)
    figures.add("native step / goal", [ms / STEP_GOAL_MS for ms in steps])
    figures.add("native load / goal", [ms / LOAD_GOAL_MS for ms in loads])


def _report_ratios(native: Sequence[_Times], original: Sequence[_Times], figures: Figures) -> None:
    figures.add("TextWorld step", [times.step_ms for times in original], "ms")
    figures.add("TextWorld load", [times.load_ms for times in original], "ms")
    figures.add_ratio(
        "TextWorld step / native step",
        [times.step_ms for times in original],
        [times.step_ms for times in native],
    )
    figures.add_ratio(
        "TextWorld load / native load",
        [times.load_ms for times in original],
        [times.load_ms for times in native],
    )


def _report_memory(
    source: GameSource, options: argparse.Namespace, figures: Figures, has_textworld: bool
) -> None:
    """Native episodes by Python's own account, TextWorld's, held by a C library, by what the process grew."""
    task_ids = _task_ids(source, options.games, seed=options.repetitions)
    games = [source.load(task_id) for task_id in task_ids]

    def native(number: int) -> Engine:
        return _walked(Engine(source.load(task_ids[number])), options.steps)

    def another(number: int) -> Engine:
        return _walked(Engine(games[number]), options.steps)

    tracemalloc.start()
    own = _grown(native, options.games, lambda: tracemalloc.get_traced_memory()[0])
    shared = _grown(another, options.games, lambda: tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    figures.add("native episode of a game of its own", [own], "MB", at_most=EPISODE_GOAL_MB)
    figures.add("native episode of a loaded game", [shared], "MB", at_most=EPISODE_GOAL_MB)
    if has_textworld and _STATM.exists():
        held: list[Any] = []

        def original(number: int) -> Any:
            held.append(_walked(TextWorldEngine(games[number]), min(options.steps, 3)))
            return held[-1]

        size = _grown(original, options.games, _resident_bytes)
        for engine in held:
            engine.close()
        figures.add("TextWorld episode", [size], "MB")
        figures.add_ratio("TextWorld episode / native episode", [size], [own])


def _walked(engine: Any, num_steps: int) -> Any:
    """``engine`` after ``num_steps`` steps."""
    frame = engine.reset()
    draw = random.Random(0)
    for _ in range(num_steps):
        frame = engine.step(draw.choice(frame.admissible_commands))
    return engine


def _grown(make: Callable[[int], Any], number: int, used_bytes: Callable[[], int]) -> float:
    """By how many MB (10**6 bytes) each of ``number`` objects that stay alive lets the process grow."""
    held = [None] * number
    before = used_bytes()
    for index in range(number):
        held[index] = make(index)
    return (used_bytes() - before) / number / 1e6


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

"""A planner with full knowledge of a game, and the searcher without it.

The planner knows everything because it looks everywhere in a copy of the episode; it uses nothing but what
the engine says, weighs every choice of objects and receptacles, and plays the shortest plan to prove it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import Game
from envs.alfworld.searcher import APPLIANCES, Memory, Searcher, SearchGoal, parse_goal, type_of

__all__ = ["NoPlanError", "Searcher", "plan", "steps_left"]

_CARRIED = re.compile(r"You are carrying: an? ([a-z]+ \d+)")


class NoPlanError(ValueError):
    """The planner found no way to solve the game."""


def plan(game: Game | Engine) -> list[str]:
    """Commands that solve the game, about as few as can be; empty for a game already won.

    From the start for a `Game`, from where it stands for an `Engine` (which is left as it is).
    Raises NoPlanError, and ValueError for a goal sentence that is not ALFWorld's.
    """
    if isinstance(game, Game):
        engine = Engine(game)
        engine.reset()
    else:
        engine = game.copy()
    frame = engine.copy().step("inventory")
    if frame.won:
        return []
    room = _scout(engine, frame)
    goal = parse_goal(engine.game.task_description)
    drafts = sorted(_drafts(goal, room), key=lambda draft: len(draft.commands))
    for draft in drafts:
        commands = _commands_that_win(engine, draft)
        if commands is not None:
            return commands
    raise NoPlanError(f"no plan for {engine.game.trial}: {len(drafts)} tried")


def steps_left(engine: Engine) -> float:
    """The length of the plan from here; infinite at a dead end: what is in hand fits nowhere."""
    try:
        return len(plan(engine))
    except NoPlanError:
        return math.inf


@dataclass(frozen=True, slots=True)
class _Room:
    """What a look everywhere has shown. ``together`` maps a receptacle to all in reach from its place."""

    memory: Memory
    closed: frozenset[str]
    open_before: tuple[str, ...]
    together: dict[str, frozenset[str]]
    here: frozenset[str]
    held: str
    release: tuple[str, ...]


@dataclass(slots=True)
class _Draft:
    """A plan being written: where one stands and what has been opened by its commands."""

    room: _Room
    here: frozenset[str]
    commands: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def go(self, place: str) -> None:
        if place not in self.here:
            self.commands.append(f"go to {place}")
            self.here = self.room.together[place]

    def open(self, place: str) -> None:
        self.go(place)
        if place in self.room.closed and place not in self.opened:
            self.commands.append(f"open {place}")
            self.opened.append(place)

    def take(self, name: str, place: str) -> None:
        self.open(place)
        self.commands.append(f"take {name} from {place}")

    def move(self, name: str, place: str) -> None:
        self.open(place)
        self.commands.append(f"move {name} to {place}")

    def change(self, verb: str, name: str, place: str) -> None:
        self.go(place)
        self.commands.append(f"{verb} {name} with {place}")


def _scout(engine: Engine, inventory: Frame) -> _Room:
    """Goes to, and opens, every receptacle in a copy of the episode."""
    scout = engine.copy()
    memory = Memory()
    frame = inventory
    memory.observe(frame.observation, frame.admissible_commands)
    in_reach_elsewhere = set(memory.receptacles)
    closed: set[str] = set()
    open_before: list[str] = []
    together: dict[str, frozenset[str]] = {}
    held = _CARRIED.search(inventory.observation)
    waiting = list(memory.receptacles)
    while waiting:
        place = waiting.pop(0)
        for command in (f"go to {place}", f"examine {place}", f"open {place}"):
            if command in frame.admissible_commands:
                if command.startswith("open"):
                    closed.add(place)
                frame = scout.step(command)
                known = len(memory.receptacles)
                memory.observe(frame.observation, frame.admissible_commands)
                waiting += memory.receptacles[known:]
        together[place] = frozenset(memory.here)
        if place not in closed and f"close {place}" in frame.admissible_commands:
            open_before.append(place)
    name = held[1] if held else ""
    here = [place for place in memory.receptacles if place not in in_reach_elsewhere]
    here_first = [*here, *(place for place in memory.receptacles if place in in_reach_elsewhere)]
    return _Room(
        memory=memory,
        closed=frozenset(closed),
        open_before=tuple(open_before),
        together=together,
        here=frozenset(here),
        held=name,
        release=_release(engine, name, here_first),
    )


def _release(engine: Engine, held: str, receptacles: list[str]) -> tuple[str, ...]:
    """The commands that get rid of what is held, at the first place that takes it."""
    if not held:
        return ()
    for place in receptacles:
        trial = engine.copy()
        commands: list[str] = []
        frame = trial.step("look")
        for command in (f"go to {place}", f"open {place}", f"move {held} to {place}"):
            if command in frame.admissible_commands:
                commands.append(command)
                frame = trial.step(command)
        if commands and commands[-1].startswith("move "):
            return tuple(commands)
    return ()


def _drafts(goal: SearchGoal, room: _Room) -> Iterator[_Draft]:
    """Every choice of objects, receptacle and appliance, as the commands it takes."""
    memory = room.memory
    objects = memory.places_of(goal.object)
    if type_of(room.held) == goal.object:
        objects = [(room.held, ""), *objects]
    targets = [place for place in memory.receptacles if type_of(place) == goal.parent]
    if goal.toggle:
        for item in objects:
            for lamp, place in memory.places_of(goal.toggle):
                yield _look_draft(room, item, lamp, place)
        return
    appliances = [place for place in memory.receptacles if type_of(place) == APPLIANCES.get(goal.verb)]
    for target in targets:
        for chosen in permutations(objects, goal.count):
            # What is held may have been changed already; not every object shows it when it is examined.
            is_held = any(name == room.held for name, _ in chosen)
            for appliance in [*([""] if is_held or not goal.verb else []), *appliances]:
                yield _put_draft(room, goal, chosen, target, appliance)


def _begin(room: _Room, first: tuple[str, str]) -> _Draft:
    """A draft that has gone to the first object and holds it, whatever was held before."""
    draft = _Draft(room, room.here)
    name, place = first
    if not place:
        return draft
    for command in room.release:
        draft.commands.append(command)
        verb, _, rest = command.partition(" ")
        if verb == "go":
            draft.here = room.together[rest.removeprefix("to ")]
        elif verb == "open":
            draft.opened.append(rest)
    draft.take(name, place)
    return draft


def _look_draft(room: _Room, item: tuple[str, str], lamp: str, place: str) -> _Draft:
    draft = _begin(room, item)
    draft.go(place)
    draft.commands.append(f"use {lamp}")
    return draft


def _put_draft(
    room: _Room, goal: SearchGoal, chosen: tuple[tuple[str, str], ...], target: str, appliance: str
) -> _Draft:
    # what is in the target already stays there, unless it has to be changed first
    moving = [(name, place) for name, place in chosen if place != target or goal.verb]
    draft = _Draft(room, room.here)
    for index, (name, place) in enumerate(moving):
        if index == 0:
            draft = _begin(room, (name, place))
        elif place:
            draft.take(name, place)
        if appliance:
            draft.change(goal.verb, name, appliance)
        draft.move(name, target)
    return draft


def _commands_that_win(engine: Engine, draft: _Draft) -> list[str] | None:
    """The draft's commands up to the win; some goals also want all receptacles closed, so try that last."""
    trial = engine.copy()
    frame = trial.step("look")
    to_close = [*draft.opened[::-1], *draft.room.open_before]
    tidy_up = [command for name in to_close for command in (f"go to {name}", f"close {name}")]
    played: list[str] = []
    for position, command in enumerate([*draft.commands, *tidy_up]):
        if command not in frame.admissible_commands:
            if position < len(draft.commands):
                return None
            continue
        frame = trial.step(command)
        played.append(command)
        if frame.won:
            return played
    return None

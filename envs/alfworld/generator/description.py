"""What one generated game is, before it becomes PDDL: furniture, objects and a goal.

Coordinates are hundredths of a metre, locations ``(x, z, rotation, horizon)`` in the grid units of ALFRED
(quarter metres, quarter turns, degrees); all are ints, so the same description always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

Location = tuple[int, int, int, int]
Position = tuple[int, int, int]

# ids of these receptacles are named after the fixture they are part of
BASIN_FIXTURES = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}


@dataclass(frozen=True, slots=True)
class Furniture:
    """A receptacle, where it is, and where one stands to reach it."""

    type: str
    position: Position
    location: Location

    @property
    def symbol(self) -> str:
        """Its PDDL symbol, such as ``Drawer_bar__plus_01_dot_13_bar_...``."""
        fixture = BASIN_FIXTURES.get(self.type)
        if fixture is None:
            return encode_id(self.type, self.position)
        return f"{encode_id(fixture, self.position)}_bar_{self.type}"


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """An object in the receptacle with index ``receptacle``."""

    type: str
    position: Position
    receptacle: int

    @property
    def symbol(self) -> str:
        return encode_id(self.type, self.position)


@dataclass(frozen=True, slots=True)
class FixedObject:
    """An object in no receptacle, such as a window: seen by who stands at ``location``."""

    type: str
    position: Position
    location: Location

    @property
    def symbol(self) -> str:
        return encode_id(self.type, self.position)


@dataclass(frozen=True, slots=True)
class Goal:
    """The task: ``parent`` is empty for look_at_obj_in_light, ``toggle`` for all others."""

    task_type: str
    object: str
    parent: str = ""
    toggle: str = ""

    @property
    def pddl_params(self) -> dict[str, Any]:
        """The ``pddl_params`` of a traj_data.json."""
        return {
            "mrecep_target": "",
            "object_sliced": False,
            "object_target": self.object,
            "parent_target": self.parent,
            "toggle_target": self.toggle,
        }


@dataclass(frozen=True, slots=True)
class GameDescription:
    """Everything that makes a game. ``size`` is small, medium or large."""

    goal: Goal
    size: str
    floor_plan: int
    start: Location
    furniture: tuple[Furniture, ...]
    objects: tuple[PlacedObject, ...]
    fixed_objects: tuple[FixedObject, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    @property
    def trial(self) -> str:
        """``TASK_FOLDER/TRIAL_FOLDER`` in the style of ALFRED; the trial part is made of the content."""
        goal = self.goal
        folder = f"{goal.task_type}-{goal.object}-None-{goal.parent or goal.toggle}-{self.floor_plan}"
        return f"{folder}/trial_{self.fingerprint[:12]}"

    @property
    def content_key(self) -> str:
        """Equal for games that read alike: same goal, and same object types in same receptacle types."""
        contents: list[list[str]] = [[] for _ in self.furniture]
        for placed in self.objects:
            contents[placed.receptacle].append(placed.type)
        room = sorted(
            (item.type, *sorted(inside)) for item, inside in zip(self.furniture, contents, strict=True)
        )
        goal = self.goal
        return json.dumps([goal.task_type, goal.object, goal.parent, goal.toggle, room])


def encode_id(object_type: str, position: Position) -> str:
    """ALFRED's id ``Type|+00.58|...`` as a PDDL symbol."""
    text = "|".join([object_type, *(f"{'-' if c < 0 else '+'}{abs(c) / 100:05.2f}" for c in position)])
    for character, word in (("|", "_bar_"), ("+", "_plus_"), ("-", "_minus_"), (".", "_dot_")):
        text = text.replace(character, word)
    return text


def encode_location(location: Location) -> str:
    """A location's PDDL symbol, such as ``loc_bar_2_bar__minus_3_bar_1_bar_60``."""
    return "loc_bar_" + "_bar_".join(str(number).replace("-", "_minus_") for number in location)


def to_json(game: GameDescription) -> str:
    """One line of compact JSON; `from_json` reads it back."""
    goal = game.goal
    data = {
        "goal": [goal.task_type, goal.object, goal.parent, goal.toggle],
        "size": game.size,
        "plan": game.floor_plan,
        "start": game.start,
        "furniture": [[item.type, *item.position, *item.location] for item in game.furniture],
        "objects": [[placed.type, *placed.position, placed.receptacle] for placed in game.objects],
        "fixed": [[item.type, *item.position, *item.location] for item in game.fixed_objects],
    }
    return json.dumps(data, separators=(",", ":"))


def from_json(line: str) -> GameDescription:
    """The inverse of `to_json`. Raises ValueError, KeyError or TypeError for anything else."""
    data = json.loads(line)
    return GameDescription(
        goal=Goal(*data["goal"]),
        size=data["size"],
        floor_plan=data["plan"],
        start=_location(data["start"]),
        furniture=tuple(
            Furniture(name, (x, y, z), _location(at)) for name, x, y, z, *at in data["furniture"]
        ),
        objects=tuple(PlacedObject(name, (x, y, z), inside) for name, x, y, z, inside in data["objects"]),
        fixed_objects=tuple(
            FixedObject(name, (x, y, z), _location(at)) for name, x, y, z, *at in data["fixed"]
        ),
    )


def _location(numbers: list[int]) -> Location:
    x, z, rotation, horizon = numbers
    return (x, z, rotation, horizon)

"""Furnishes a room for a goal: which receptacles, which objects, and what lies where."""

from __future__ import annotations

import random
from dataclasses import dataclass

from envs.alfworld.generator.description import (
    FixedObject,
    Furniture,
    GameDescription,
    Goal,
    Location,
    PlacedObject,
    Position,
)
from envs.alfworld.generator.goals import LAMP, LAMP_FURNITURE, STATE_CHANGES
from envs.alfworld.generator.package_data import FloorPlan
from envs.alfworld.generator.problem import Rules


@dataclass(frozen=True, slots=True)
class RoomSize:
    """Inclusive ranges: how many receptacles, how many objects in them, how many objects in none."""

    receptacles: tuple[int, int]
    objects: tuple[int, int]
    fixed_objects: tuple[int, int]


# small: for policies of under a million parameters; large: as real kitchens and living rooms are
ROOM_SIZES = {
    "small": RoomSize((4, 6), (5, 9), (0, 0)),
    "medium": RoomSize((8, 14), (14, 22), (1, 3)),
    "large": RoomSize((18, 45), (28, 48), (3, 8)),
}

# How much of a room's things one piece of furniture of a type attracts; the others count 0.7.
DEFAULT_ATTRACTION = 0.7
ATTRACTION = {
    "CounterTop": 6.0,
    "DiningTable": 6.0,
    "Desk": 5.0,
    "CoffeeTable": 4.0,
    "Dresser": 4.0,
    "Bed": 3.0,
    "Fridge": 3.0,
    "Sofa": 3.0,
    "Cart": 2.5,
    "SideTable": 2.5,
    "Toilet": 2.0,
    "SinkBasin": 1.5,
    "Shelf": 1.2,
    "Cabinet": 0.5,
    "Drawer": 0.5,
}

# ALFRED's own limit on copies of a thing that the task does not ask for
MAX_COPIES = 3
# these hold one thing at most
SINGLE_PLACES = frozenset(
    {"CoffeeMachine", "HandTowelHolder", "StoveBurner", "ToiletPaperHanger", "TowelHolder"}
)

FIXED_TYPES = (
    "Blinds",
    "Chair",
    "Curtains",
    "FloorLamp",
    "HousePlant",
    "LightSwitch",
    "Mirror",
    "Painting",
    "Poster",
    "StoveKnob",
    "Television",
    "Window",
)


def furnish(
    goal: Goal, plan: FloorPlan, size: str, rules: Rules, rng: random.Random
) -> GameDescription | None:
    """One game of that goal and size in the plan; None where the plan is too small for it."""
    furniture = _choose_furniture(goal, plan, ROOM_SIZES[size], rules, rng)
    if furniture is None:
        return None
    types = _place_types(goal, plan, furniture, ROOM_SIZES[size], rules, rng)
    if types is None:
        return None
    fixed = _fixed_objects(plan, ROOM_SIZES[size], rng)
    return GameDescription(
        goal=goal,
        size=size,
        floor_plan=plan.number,
        start=_start(plan, furniture, fixed, rng),
        furniture=tuple(furniture),
        objects=_positions(types, furniture, rng),
        fixed_objects=tuple(fixed),
    )


def _choose_furniture(
    goal: Goal, plan: FloorPlan, size: RoomSize, rules: Rules, rng: random.Random
) -> list[Furniture] | None:
    low, high = size.receptacles
    if len(plan.furniture) < low:
        return None
    count = rng.randint(low, min(high, len(plan.furniture)))
    needed: list[Furniture] = []
    for options in _needed(goal, plan, rules):
        if not any(item in needed for item in options):
            needed.append(rng.choice(options))
    rest = [item for item in plan.furniture if item not in needed]
    # where the object is found first: somewhere that already meets the goal would leave nothing to do
    sources = [item for item in rest if _may_hold(item, goal, rules)]
    if not any(_may_hold(item, goal, rules) for item in needed):
        if not sources:
            return None
        needed.append(_attracted(sources, rng))
    if len(needed) > count:
        return None
    rest = [item for item in rest if item not in needed]
    chosen = {*needed, *_spread(rest, count - len(needed), rng)}
    return [item for item in plan.furniture if item in chosen]


def _needed(goal: Goal, plan: FloorPlan, rules: Rules) -> list[list[Furniture]]:
    """For every role the goal has, the furniture that can play it."""
    roles = []
    if goal.parent:
        roles.append(plan.of_type(goal.parent))
    if goal.task_type in STATE_CHANGES:
        roles.append(plan.of_type(STATE_CHANGES[goal.task_type].appliance))
    if goal.toggle:
        roles.append([item for item in plan.furniture if item.type in LAMP_FURNITURE])
    return roles


def _may_hold(item: Furniture, goal: Goal, rules: Rules) -> bool:
    return item.type != goal.parent and goal.object in rules.can_contain[item.type]


def _spread(options: list[Furniture], count: int, rng: random.Random) -> list[Furniture]:
    """A draw without replacement in which a type's second and third piece are less and less likely."""
    taken: list[Furniture] = []
    seen: dict[str, int] = {}
    rest = list(options)
    while rest and len(taken) < count:
        weights = [0.4 ** seen.get(item.type, 0) for item in rest]
        item = rng.choices(rest, weights)[0]
        rest.remove(item)
        taken.append(item)
        seen[item.type] = seen.get(item.type, 0) + 1
    return taken


def _attracted(options: list[Furniture], rng: random.Random) -> Furniture:
    return rng.choices(options, [ATTRACTION.get(item.type, DEFAULT_ATTRACTION) for item in options])[0]


def _place_types(
    goal: Goal, plan: FloorPlan, furniture: list[Furniture], size: RoomSize, rules: Rules, rng: random.Random
) -> list[tuple[str, int]] | None:
    """Object types and the index of the furniture each lies in: the goal's objects, the lamp, the others."""
    sources = [item for item in furniture if _may_hold(item, goal, rules)]
    if not sources:
        return None
    wanted = (2 if goal.task_type == "pick_two_obj_and_place" else 1) + (rng.random() < 0.25)
    placed = [(goal.object, furniture.index(_attracted(sources, rng))) for _ in range(wanted)]
    if goal.toggle:
        holders = [item for item in furniture if item.type in LAMP_FURNITURE]
        placed.append((LAMP, furniture.index(rng.choice(holders))))
    others = [name for name in plan.object_types if name not in (goal.object, LAMP) and rules.holdable(name)]
    for _ in range(max(0, rng.randint(*size.objects) - len(placed))):
        name = rng.choice(others)
        taken = {index for _, index in placed}
        holders = [
            item
            for index, item in enumerate(furniture)
            if name in rules.can_contain[item.type] and not (item.type in SINGLE_PLACES and index in taken)
        ]
        if holders and [other for other, _ in placed].count(name) < MAX_COPIES:
            placed.append((name, furniture.index(_attracted(holders, rng))))
    return placed


def _positions(
    types: list[tuple[str, int]], furniture: list[Furniture], rng: random.Random
) -> tuple[PlacedObject, ...]:
    used: set[tuple[str, Position]] = set()
    objects = []
    for name, index in sorted(types):
        while True:
            x, y, z = furniture[index].position
            spot = (x + rng.randint(-30, 30), y + rng.randint(2, 12), z + rng.randint(-30, 30))
            if (name, spot) not in used:
                break
        used.add((name, spot))
        objects.append(PlacedObject(name, spot, index))
    return tuple(objects)


def _fixed_objects(plan: FloorPlan, size: RoomSize, rng: random.Random) -> list[FixedObject]:
    present = [name for name in FIXED_TYPES if name in plan.object_types]
    count = min(rng.randint(*size.fixed_objects), len(present))
    fixed = []
    for name in sorted(rng.sample(present, count)):
        x, z = rng.choice(plan.floor)
        spot = (x * 25 + rng.randint(-50, 50), rng.randint(0, 200), z * 25 + rng.randint(-50, 50))
        fixed.append(FixedObject(name, spot, (x, z, rng.randrange(4), rng.choice((0, 30, 60)))))
    return fixed


def _start(
    plan: FloorPlan, furniture: list[Furniture], fixed: list[FixedObject], rng: random.Random
) -> Location:
    """Somewhere that is no receptacle's place, so that the game opens in the middle of a room."""
    taken = {item.location for item in (*furniture, *fixed)}
    free = [(x, z, turn, 30) for x, z in plan.floor for turn in range(4) if (x, z, turn, 30) not in taken]
    return rng.choice(free)

"""Which goals a floor plan offers for a task type."""

from __future__ import annotations

import random
from dataclasses import dataclass

from envs.alfworld.generator.description import Goal
from envs.alfworld.generator.package_data import FloorPlan
from envs.alfworld.generator.problem import Rules

LAMP = "DeskLamp"
LAMP_FURNITURE = ("Desk", "SideTable", "Dresser", "Shelf", "DiningTable")
# rooms with any lamp may have a desk lamp; it is the only one that stands in a receptacle
LAMP_ROOMS = frozenset({"DeskLamp", "Lamp"})


@dataclass(frozen=True, slots=True)
class StateChange:
    """What a task type does with the object on its way, and the receptacle type that it takes."""

    verb: str
    appliance: str


STATE_CHANGES = {
    "pick_clean_then_place_in_recep": StateChange("clean", "SinkBasin"),
    "pick_heat_then_place_in_recep": StateChange("heat", "Microwave"),
    "pick_cool_then_place_in_recep": StateChange("cool", "Fridge"),
}


def sample_goal(task_type: str, plan: FloorPlan, rules: Rules, rng: random.Random) -> Goal | None:
    """A goal drawn from all that the plan offers, first its object, then its receptacle; None without any."""
    targets = goal_receptacles(task_type, plan, rules)
    if not targets:
        return None
    name = rng.choice(sorted(targets))
    if task_type == "look_at_obj_in_light":
        return Goal(task_type, name, toggle=LAMP)
    return Goal(task_type, name, parent=rng.choice(targets[name]))


def goal_receptacles(task_type: str, plan: FloorPlan, rules: Rules) -> dict[str, list[str]]:
    """Object type -> the receptacle types it may be asked to go to (for look: that can hold it before)."""
    furniture_types = sorted({item.type for item in plan.furniture})
    change = STATE_CHANGES.get(task_type)
    names = [name for name in plan.object_types if rules.holdable(name)]
    if task_type == "look_at_obj_in_light":
        if not _has_lamp(plan):
            return {}
    elif change is not None:
        changeable = {"clean": rules.cleanable, "heat": rules.heatable, "cool": rules.coolable}[change.verb]
        names = [name for name in names if name in changeable and change.appliance in furniture_types]
    offers = {}
    for name in names:
        holders = [item for item in furniture_types if name in rules.can_contain[item]]
        goals = [item for item in holders if change is None or item != change.appliance]
        # the object must have somewhere else to be found
        goals = [item for item in goals if len(holders) > 1 or task_type == "look_at_obj_in_light"]
        if goals:
            offers[name] = goals
    return offers


def _has_lamp(plan: FloorPlan) -> bool:
    return bool(LAMP_ROOMS & set(plan.object_types)) and any(
        item.type in LAMP_FURNITURE for item in plan.furniture
    )

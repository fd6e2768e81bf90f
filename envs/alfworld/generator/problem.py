"""A description as the files ALFWorld has: the PDDL problem and traj_data.

Needs nothing but the description and the `Rules`, so that a pack can build its games without the package
whose tables they come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from envs.alfworld.generator.description import GameDescription, encode_location


@dataclass(frozen=True, slots=True)
class Rules:
    """The package's affordances and goals.

    ``can_contain`` maps a receptacle type to the object types it takes; ``goals`` maps a task type to a
    PDDL goal with the places ``{obj}``, ``{recep}`` and ``{toggle}``; the others are sorted type names.
    """

    can_contain: dict[str, tuple[str, ...]]
    cleanable: tuple[str, ...]
    heatable: tuple[str, ...]
    coolable: tuple[str, ...]
    toggleable: tuple[str, ...]
    sliceable: tuple[str, ...]
    movable_receptacles: tuple[str, ...]
    openable: tuple[str, ...]
    goals: dict[str, str]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rules:
        """From the dict that ``dataclasses.asdict`` and JSON make. Raises TypeError for wrong keys."""
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        contain = {name: tuple(value) for name, value in data["can_contain"].items()}
        return cls(**lists, can_contain=contain, goals=dict(data["goals"]))

    def holdable(self, object_type: str) -> bool:
        """Whether some receptacle takes the object, so that it may be picked up and put down."""
        return any(object_type in inside for inside in self.can_contain.values())


def problem_pddl(game: GameDescription, rules: Rules) -> str:
    """The text of the game's ``initial_state.pddl``."""
    object_types = sorted({placed.type for placed in (*game.objects, *game.fixed_objects)})
    receptacle_types = sorted({item.type for item in game.furniture})
    locations = {game.start, *(item.location for item in (*game.furniture, *game.fixed_objects))}
    declared = [
        "agent1 - agent",
        *(f"{name}Type - otype" for name in object_types),
        *(f"{name}Type - rtype" for name in receptacle_types),
        *(f"{placed.symbol} - object" for placed in (*game.objects, *game.fixed_objects)),
        *(f"{item.symbol} - receptacle" for item in game.furniture),
        *(f"{encode_location(location)} - location" for location in sorted(locations)),
    ]
    facts = [
        f"(atLocation agent1 {encode_location(game.start)})",
        *_furniture_facts(game, rules),
        *_object_facts(game, rules),
        *(
            f"(canContain {receptacle}Type {name}Type)"
            for receptacle in receptacle_types
            for name in object_types
            if name in rules.can_contain[receptacle]
        ),
    ]
    name = game.trial.rpartition("/")[2]
    return (
        f"(define (problem plan_{name})\n(:domain alfred)\n(:objects\n{_lines(declared)})\n"
        f"(:init\n{_lines(facts)})\n{_goal(game, rules)}"
    )


def traj_data(game: GameDescription) -> dict[str, Any]:
    """The part of ``traj_data.json`` that a text game uses."""
    return {
        "task_id": game.trial.rpartition("/")[2],
        "task_type": game.goal.task_type,
        "pddl_params": game.goal.pddl_params,
        "scene": {"floor_plan": f"FloorPlan{game.floor_plan}", "scene_num": game.floor_plan},
        "turk_annotations": {"anns": []},
    }


def _furniture_facts(game: GameDescription, rules: Rules) -> Iterable[str]:
    for item in game.furniture:
        yield f"(receptacleType {item.symbol} {item.type}Type)"
        yield f"(receptacleAtLocation {item.symbol} {encode_location(item.location)})"
        if item.type in rules.openable:
            yield f"(openable {item.symbol})"


def _object_facts(game: GameDescription, rules: Rules) -> Iterable[str]:
    for placed in game.objects:
        home = game.furniture[placed.receptacle]
        yield from _properties(placed.symbol, placed.type, rules)
        if rules.holdable(placed.type):
            yield f"(pickupable {placed.symbol})"
        yield f"(inReceptacle {placed.symbol} {home.symbol})"
        yield f"(objectAtLocation {placed.symbol} {encode_location(home.location)})"
    for fixed in game.fixed_objects:
        yield from _properties(fixed.symbol, fixed.type, rules)
        yield f"(objectAtLocation {fixed.symbol} {encode_location(fixed.location)})"


def _properties(symbol: str, object_type: str, rules: Rules) -> Iterable[str]:
    yield f"(objectType {symbol} {object_type}Type)"
    for predicate, types in (
        ("cleanable", rules.cleanable),
        ("heatable", rules.heatable),
        ("coolable", rules.coolable),
        ("toggleable", rules.toggleable),
        ("sliceable", rules.sliceable),
        ("isReceptacleObject", rules.movable_receptacles),
    ):
        if object_type in types:
            yield f"({predicate} {symbol})"


def _goal(game: GameDescription, rules: Rules) -> str:
    goal = game.goal
    template = rules.goals[goal.task_type].replace("#", "-")
    return template.format(obj=goal.object, recep=goal.parent, toggle=goal.toggle)


def _lines(items: Iterable[str]) -> str:
    return "".join(f"    {item}\n" for item in items)

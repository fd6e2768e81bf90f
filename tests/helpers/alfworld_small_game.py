"""A hand-made ALFWorld game of six receptacles and five objects, for tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import Game, build_game
from envs.alfworld.textworld_engine import TextWorldEngine

PLACES = {
    "Desk_bar__plus_01": ("Desk", "loc_bar_1"),
    "Fridge_bar__plus_01": ("Fridge", "loc_bar_2"),
    "Microwave_bar__plus_01": ("Microwave", "loc_bar_3"),
    "Shelf_bar__plus_01": ("Shelf", "loc_bar_5"),
    "Shelf_bar__plus_02": ("Shelf", "loc_bar_5"),
    "Sink_bar__plus_01_bar_SinkBasin": ("SinkBasin", "loc_bar_4"),
}
THINGS = {
    "Apple_bar__minus_01": ("Apple", "Fridge_bar__plus_01"),
    "Apple_bar__plus_01": ("Apple", "Shelf_bar__plus_01"),
    "DeskLamp_bar__plus_01": ("DeskLamp", "Desk_bar__plus_01"),
    "Knife_bar__plus_01": ("Knife", "Shelf_bar__plus_01"),
    "Mug_bar__plus_01": ("Mug", "Shelf_bar__plus_02"),
}
FACTS = """
    (atLocation agent1 loc_bar_0)
    (openable Fridge_bar__plus_01) (openable Microwave_bar__plus_01)
    (pickupable Apple_bar__minus_01) (pickupable Apple_bar__plus_01) (pickupable Knife_bar__plus_01)
    (pickupable Mug_bar__plus_01) (isReceptacleObject Mug_bar__plus_01) (toggleable DeskLamp_bar__plus_01)
    (cleanable Apple_bar__minus_01) (heatable Apple_bar__minus_01) (coolable Apple_bar__minus_01)
    (sliceable Apple_bar__minus_01) (sliceable Apple_bar__plus_01)
"""
APPLE_ON_DESK = """(exists (?r - receptacle ?o - object) (and
    (inReceptacle ?o ?r) (objectType ?o AppleType) (receptacleType ?r DeskType)))"""
HOLD_APPLE_IN_LIGHT = """(and
    (exists (?lamp - object ?r - receptacle ?a - agent ?l - location) (and (isToggled ?lamp)
        (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?lamp ?r)))
    (exists (?o - object ?a - agent) (and (objectType ?o AppleType) (holds ?a ?o))))"""
TWO_APPLES_ON_DESK = """(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 AppleType)
    (receptacleType ?r DeskType) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and
    (not (= ?o1 ?o2)) (objectType ?o2 AppleType) (inReceptacle ?o2 ?r))))))"""
TRAJ_DATA: dict[str, Any] = {
    "task_type": "pick_and_place_simple",
    "pddl_params": {
        "object_target": "Apple",
        "parent_target": "Desk",
        "toggle_target": "",
        "object_sliced": False,
    },
}


def problem(goal: str, facts: str = "") -> str:
    kinds = sorted({kind for kind, _ in THINGS.values()})
    places = sorted({kind for kind, _ in PLACES.values()})
    objects = [
        "agent1 - agent",
        " ".join(f"loc_bar_{number}" for number in range(6)) + " - location",
        " ".join(PLACES) + " - receptacle",
        " ".join(THINGS) + " - object",
        " ".join(f"{kind}Type" for kind in kinds) + " - otype",
        " ".join(f"{kind}Type" for kind in places) + " - rtype",
    ]
    init = [f"(receptacleType {name} {kind}Type)" for name, (kind, _) in PLACES.items()]
    init += [f"(receptacleAtLocation {name} {location})" for name, (_, location) in PLACES.items()]
    init += [f"(objectType {name} {kind}Type)" for name, (kind, _) in THINGS.items()]
    init += [f"(inReceptacle {name} {place})" for name, (_, place) in THINGS.items()]
    init += [f"(objectAtLocation {name} {PLACES[place][1]})" for name, (_, place) in THINGS.items()]
    init += [f"(canContain {place}Type {kind}Type)" for place in places for kind in kinds]
    return (
        f"(define (problem small) (:domain alfred) (:objects {' '.join(objects)})\n"
        f"(:init {FACTS} {' '.join(init)} {facts}) (:goal {goal}))"
    )


def small_game(goal: str = APPLE_ON_DESK, facts: str = "") -> Game:
    return build_game("task/trial", problem(goal, facts), TRAJ_DATA, "put some apple on desk")


def play(engine: Engine | TextWorldEngine, *commands: str) -> Frame:
    frame = engine.reset()
    for command in commands:
        frame = engine.step(command)
    return frame


def said(*commands: str, facts: str = "") -> str:
    return play(Engine(small_game(facts=facts)), *commands).observation


def walk(game: Game, seed: int) -> list[Frame]:
    chooser = random.Random(seed)
    engine = Engine(game)
    frames = [engine.reset()]
    for _ in range(60):
        frames.append(engine.step(chooser.choice(frames[-1].admissible_commands)))
    return frames


def write_trial(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "initial_state.pddl").write_text(problem(TWO_APPLES_ON_DESK))
    (folder / "traj_data.json").write_text(json.dumps(TRAJ_DATA))
    return folder

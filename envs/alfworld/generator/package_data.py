"""Floor plans, affordances and goals out of the installed ``alfworld`` package.

The package itself is not imported (that would ask for TextWorld): its files are found beside it.
"""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from envs.alfworld.generator.description import Furniture, Location, Position
from envs.alfworld.generator.problem import Rules
from envs.alfworld.tasks import TASK_TYPES

# The layouts list only what ALFRED's navigation reaches. These stand in the rooms whose object list names
# them, at a spot of our own choosing, as many as such rooms usually have.
UNLISTED_FURNITURE = {
    "StoveBurner": 4,
    "CoffeeMachine": 1,
    "Toaster": 1,
    "GarbageCan": 1,
    "LaundryHamper": 1,
    "Toilet": 1,
    "TowelHolder": 1,
    "HandTowelHolder": 2,
    "ToiletPaperHanger": 1,
    "Sofa": 1,
    "ArmChair": 1,
    "Bed": 1,
    "Ottoman": 1,
    "Desk": 1,
    "Dresser": 1,
    "SideTable": 1,
    "CoffeeTable": 1,
    "DiningTable": 1,
    "TVStand": 1,
    "CounterTop": 1,
    "Cart": 1,
    "Safe": 1,
}


class PackageDataError(ValueError):
    """The installed alfworld package is missing, or lacks the data that games are made of."""


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """A room of AI2-THOR: ``room`` is Kitchen, LivingRoom, Bedroom or Bathroom."""

    number: int
    room: str
    furniture: tuple[Furniture, ...]
    object_types: tuple[str, ...]
    floor: tuple[tuple[int, int], ...]

    def of_type(self, furniture_type: str) -> list[Furniture]:
        """The furniture of that type, in order."""
        return [item for item in self.furniture if item.type == furniture_type]


@dataclass(frozen=True, slots=True)
class PackageData:
    """All that generation draws on. ``valid_rooms`` says where a task type makes sense."""

    rules: Rules
    train_plans: tuple[FloorPlan, ...]
    unseen_plans: tuple[FloorPlan, ...]
    valid_rooms: dict[str, frozenset[str]]


def read_package_data() -> PackageData:
    """Reads the installed package. Raises PackageDataError when it is missing or not understood."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise PackageDataError("generating games needs the alfworld package: pip install alfworld")
    gen = Path(spec.submodule_search_locations[0]) / "gen"
    constants = _load(gen / "constants.py")
    goals = _load(gen / "goal_library.py").gdict
    rules = _rules(constants, goals)
    return PackageData(
        rules=rules,
        train_plans=_floor_plans(gen / "layouts", constants.TRAIN_SCENE_NUMBERS, constants.SCENE_TYPE, rules),
        unseen_plans=_floor_plans(gen / "layouts", constants.TEST_SCENE_NUMBERS, constants.SCENE_TYPE, rules),
        valid_rooms={name: frozenset(constants.GOALS_VALID[name]) for name in TASK_TYPES},
    )


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"alfworld_{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise PackageDataError(f"the alfworld package has no {path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rules(constants: ModuleType, goals: dict[str, dict[str, str]]) -> Rules:
    movable = set(constants.MOVABLE_RECEPTACLES)
    actions = constants.VAL_ACTION_OBJECTS
    contain = constants.VAL_RECEPTACLE_OBJECTS
    return Rules(
        can_contain={name: _whole(contain[name]) for name in sorted(contain) if name not in movable},
        cleanable=_whole(actions["Cleanable"]),
        heatable=_whole(actions["Heatable"]),
        coolable=_whole(actions["Coolable"]),
        toggleable=_whole(actions["Toggleable"]),
        sliceable=_whole(actions["Sliceable"]),
        movable_receptacles=tuple(sorted(movable)),
        openable=tuple(sorted(set(constants.OPENABLE_CLASS_LIST) - movable)),
        goals={name: " ".join(goals[name]["pddl"].split()) for name in TASK_TYPES},
    )


def _whole(types: set[str]) -> tuple[str, ...]:
    """Sorted, without the sliced variants: text games keep a sliced object's type."""
    return tuple(sorted(name for name in types if not name.endswith("Sliced")))


def _floor_plans(
    folder: Path, numbers: list[int], rooms: dict[str, range], rules: Rules
) -> tuple[FloorPlan, ...]:
    plans = []
    for number in sorted(numbers):
        room = next(name for name, range_ in rooms.items() if number in range_)
        listed = json.loads((folder / f"FloorPlan{number}-openable.json").read_text(encoding="utf-8"))
        objects = (folder / f"FloorPlan{number}-objects.json").read_text(encoding="utf-8")
        object_types = tuple(sorted(json.loads(objects)))
        points = np.load(folder / f"FloorPlan{number}-layout.npy")
        floor = tuple(sorted({(round(x / 0.25), round(z / 0.25)) for x, z in points.tolist()}))
        furniture = [_furniture(key, at) for key, at in sorted(listed.items())]
        furniture = [item for item in furniture if item.type in rules.can_contain]
        furniture += _unlisted(number, furniture, object_types, floor)
        plans.append(FloorPlan(number, room, tuple(furniture), object_types, floor))
    return tuple(plans)


def _furniture(key: str, at: list[float]) -> Furniture:
    name, *rest = key.split("|")
    x, y, z = (round(float(number) * 100) for number in rest[:3])
    basin = rest[3] if len(rest) > 3 else name
    return Furniture(basin, (x, y, z), (round(at[0] / 0.25), round(at[1] / 0.25), int(at[2]) // 90, 60))


def _unlisted(
    number: int, listed: list[Furniture], object_types: tuple[str, ...], floor: tuple[tuple[int, int], ...]
) -> list[Furniture]:
    rng = random.Random(f"floor plan {number}")
    present = {item.type for item in listed}
    added: list[Furniture] = []
    for name, count in UNLISTED_FURNITURE.items():
        if name not in object_types or name in present:
            continue
        spot = _free_spot(rng, floor, [*listed, *added])
        for index in range(count):
            added.append(Furniture(name, _beside(spot, index), spot))
    return added


def _free_spot(rng: random.Random, floor: tuple[tuple[int, int], ...], taken: list[Furniture]) -> Location:
    """A place to stand where nothing else is reached from; the number of such places is never short."""
    used = {item.location[:3] for item in taken}
    free = [(x, z, turn) for x, z in floor for turn in range(4) if (x, z, turn) not in used]
    x, z, turn = rng.choice(free)
    return (x, z, turn, 60)


def _beside(spot: Location, index: int) -> Position:
    """A position an arm's length before the spot, the next ones 30 cm further to the side."""
    x, z, turn, _ = spot
    ahead_x, ahead_z = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn]
    side = 30 * index
    return (x * 25 + 75 * ahead_x + side * ahead_z, 80, z * 25 + 75 * ahead_z - side * ahead_x)

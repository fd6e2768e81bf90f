"""Draws games until every split has its numbers: all task types in turn, none alike, each one proved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from envs.alfworld.generator.description import GameDescription
from envs.alfworld.generator.goals import sample_goal
from envs.alfworld.generator.package_data import FloorPlan, PackageData
from envs.alfworld.generator.rooms import ROOM_SIZES, furnish
from envs.alfworld.tasks import TASK_TYPES

MAX_ATTEMPTS = 500


class GenerationError(RuntimeError):
    """No further game could be drawn that differs from those already made."""


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How many games a split gets, in which shares of sizes, and whether in the unseen floor plans."""

    count: int
    shares: Mapping[str, float]
    unseen: bool = False


def generate_splits(
    data: PackageData, plans: Mapping[str, SplitPlan], seed: int, solvable: Callable[[GameDescription], bool]
) -> dict[str, list[GameDescription]]:
    """The games of every split; the same arguments always give the same games.

    ``solvable`` proves a game; those it rejects are drawn again. No two games of any splits read alike.
    Raises GenerationError when the floor plans do not offer that many.
    """
    taken: set[str] = set()
    splits = {}
    for name in sorted(plans):
        splits[name] = list(_generate(data, name, plans[name], seed, taken, solvable))
    return splits


def size_sequence(count: int, shares: Mapping[str, float]) -> list[str]:
    """``count`` sizes in the given shares, spread evenly; raises ValueError for an unknown size."""
    unknown = sorted(set(shares) - set(ROOM_SIZES))
    if unknown:
        raise ValueError(f"unknown room size {unknown[0]!r}; known: {', '.join(ROOM_SIZES)}")
    total = sum(shares.values())
    if total <= 0:
        raise ValueError("the shares of the room sizes add up to nothing")
    owed = dict.fromkeys(sorted(shares), 0.0)
    sequence = []
    for _ in range(count):
        for name in owed:
            owed[name] += shares[name] / total
        size = max(owed, key=lambda name: owed[name])
        owed[size] -= 1.0
        sequence.append(size)
    return sequence


def _generate(
    data: PackageData,
    split: str,
    plan: SplitPlan,
    seed: int,
    taken: set[str],
    solvable: Callable[[GameDescription], bool],
) -> Iterator[GameDescription]:
    floor_plans = data.unseen_plans if plan.unseen else data.train_plans
    # one size for a whole round of task types keeps every size balanced over the types
    sizes = size_sequence(-(-plan.count // len(TASK_TYPES)), plan.shares)
    for index in range(plan.count):
        task_type = TASK_TYPES[index % len(TASK_TYPES)]
        size = sizes[index // len(TASK_TYPES)]
        rng = random.Random(f"{seed}/{split}/{index}")
        rooms = [item for item in floor_plans if item.room in data.valid_rooms[task_type]]
        for _ in range(MAX_ATTEMPTS):
            game = _draw(data, task_type, size, rooms, rng)
            if game is not None and game.content_key not in taken and solvable(game):
                taken.add(game.content_key)
                yield game
                break
        else:
            raise GenerationError(f"no new {size} game of {task_type} after {MAX_ATTEMPTS} attempts")


def _draw(
    data: PackageData, task_type: str, size: str, rooms: list[FloorPlan], rng: random.Random
) -> GameDescription | None:
    if not rooms:
        return None
    room = rng.choice(rooms)
    goal = sample_goal(task_type, room, data.rules, rng)
    return None if goal is None else furnish(goal, room, size, data.rules, rng)

"""The six kinds of ALFWorld tasks, and the sentences that state a task's goal."""

from __future__ import annotations

import zlib
from typing import Any

GOAL_SENTENCES: dict[str, tuple[str, ...]] = {
    "pick_and_place_simple": ("put a {obj} in {recep}", "put some {obj} on {recep}"),
    "look_at_obj_in_light": ("look at {obj} under the {toggle}", "examine the {obj} with the {toggle}"),
    "pick_clean_then_place_in_recep": (
        "put a clean {obj} in {recep}",
        "clean some {obj} and put it in {recep}",
    ),
    "pick_heat_then_place_in_recep": ("put a hot {obj} in {recep}", "heat some {obj} and put it in {recep}"),
    "pick_cool_then_place_in_recep": ("put a cool {obj} in {recep}", "cool some {obj} and put it in {recep}"),
    "pick_two_obj_and_place": ("put two {obj} in {recep}", "find two {obj} and put them in {recep}"),
}
"""The sentences ALFWorld has for each kind of task."""

SLICED_GOAL_SENTENCES: dict[str, tuple[str, ...]] = {
    "pick_and_place_simple": ("slice {obj} and put in {recep}", "put sliced {obj} in {recep}"),
    "look_at_obj_in_light": (
        "look at sliced {obj} under the {toggle}",
        "examine the sliced {obj} with the {toggle}",
    ),
    "pick_clean_then_place_in_recep": (
        "put a clean slice of {obj} in {recep}",
        "clean some sliced {obj} and put it in {recep}",
    ),
    "pick_heat_then_place_in_recep": (
        "put a hot slice of {obj} in {recep}",
        "heat some sliced {obj} and put it in {recep}",
    ),
    "pick_cool_then_place_in_recep": (
        "put a cool slice of {obj} in {recep}",
        "cool some sliced {obj} and put it in {recep}",
    ),
    "pick_two_obj_and_place": (
        "put two sliced {obj} in {recep}",
        "find two sliced {obj} and put them in {recep}",
    ),
}
"""The same for tasks whose object must be sliced."""

TASK_TYPES = tuple(GOAL_SENTENCES)


def task_type_of(traj_data: Any) -> str:
    """The kind of task that a `traj_data.json` describes.

    Raises:
        ValueError: it names none of the six.
    """
    task_type = traj_data.get("task_type") if isinstance(traj_data, dict) else None
    if task_type not in TASK_TYPES:
        raise ValueError(f"task_type {task_type!r} is none of {', '.join(TASK_TYPES)}")
    return task_type


def goal_sentences(traj_data: Any) -> tuple[str, ...]:
    """All sentences that can state the goal of `traj_data`, filled in, in lower case.

    Raises:
        ValueError: `traj_data` lacks its `task_type` or its `pddl_params`, or they are malformed.
    """
    task_type = task_type_of(traj_data)
    params = traj_data.get("pddl_params")
    if not isinstance(params, dict):
        raise ValueError("pddl_params is missing")
    words: dict[str, str] = {}
    for key, param in (("obj", "object_target"), ("recep", "parent_target"), ("toggle", "toggle_target")):
        if not isinstance(params.get(param), str):
            raise ValueError(f"pddl_params.{param} is missing")
        words[key] = params[param].lower()
    templates = SLICED_GOAL_SENTENCES if params.get("object_sliced") else GOAL_SENTENCES
    return tuple(template.format(**words) for template in templates[task_type])


def choose_goal_sentence(trial: str, traj_data: Any) -> str:
    """The sentence for a game that has none yet: always the same for the same trial.

    ALFWorld draws it at random when it writes a game file.
    """
    sentences = goal_sentences(traj_data)
    return sentences[zlib.crc32(trial.encode()) % len(sentences)]

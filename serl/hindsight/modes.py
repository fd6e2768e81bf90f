"""What a context is made of: sources × granularity × combination, and the paper's names for 20 of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Granularity = Literal["step", "anchor"]
Combination = Literal["all", "first_available"]


@dataclass(frozen=True, slots=True)
class HindsightMode:
    """A composition of evidence.

    ``sources``: names, in the order in which a context shows them. ``granularity``: ``step`` asks them
    about the step alone, ``anchor`` about all actions that the group tried from the same observation.
    ``combine``: ``all`` shows every source, and per step needs every one of them; ``first_available`` shows
    the first that has something.

    Per anchor a context shows a table of the actions, so it is never empty, with evidence in the order of
    `candidates`; immediate feedback alone is listed try by try instead.
    """

    sources: tuple[str, ...]
    granularity: Granularity
    combine: Combination


_SUCCESS, _FEEDBACK = "successful_sample", "immediate_feedback"
_NEXT, _FUTURE = "next_observation", "future_trajectory"
_JUDGE, _JUDGE_ON_SUCCESS = "judge_current_traj", "judge_current_traj_on_successful_sample"


def _step(*sources: str) -> HindsightMode:
    return HindsightMode(sources, "step", "all")


def _anchor(*sources: str) -> HindsightMode:
    return HindsightMode(sources, "anchor", "all")


# Names of SERL (arXiv 2605.19447) and their meaning here.
MODES: dict[str, HindsightMode] = {
    "immediate_feedback": _step(_FEEDBACK),
    "next_observation": _step(_NEXT),
    "future_trajectory": _step(_FUTURE),
    "successful_sample_immediate_feedback": _step(_SUCCESS, _FEEDBACK),
    "successful_sample_or_immediate_feedback": HindsightMode(
        (_SUCCESS, _FEEDBACK), "step", "first_available"
    ),
    "successful_sample_next_observation": _step(_SUCCESS, _NEXT),
    "successful_sample_future_trajectory": _step(_SUCCESS, _FUTURE),
    "successful_sample_future_trajectory_immediate_feedback": _step(_SUCCESS, _FUTURE, _FEEDBACK),
    "successful_sample_future_trajectory_next_observation": _step(_SUCCESS, _FUTURE, _NEXT),
    "anchor_immediate_feedback": _anchor(_FEEDBACK),
    "anchor_next_observation": _anchor(_NEXT),
    "anchor_future_trajectory": _anchor(_FUTURE),
    "anchor_successful_sample_immediate_feedback": _anchor(_SUCCESS, _FEEDBACK),
    "anchor_successful_sample_or_immediate_feedback": HindsightMode(
        (_SUCCESS, _FEEDBACK), "anchor", "first_available"
    ),
    "anchor_successful_sample_next_observation": _anchor(_SUCCESS, _NEXT),
    "anchor_successful_sample_future_trajectory": _anchor(_SUCCESS, _FUTURE),
    "anchor_successful_sample_future_trajectory_immediate_feedback": _anchor(_SUCCESS, _FUTURE, _FEEDBACK),
    "anchor_successful_sample_future_trajectory_next_observation": _anchor(_SUCCESS, _FUTURE, _NEXT),
    "judge_current_traj": _step(_JUDGE),
    "judge_current_traj_on_successful_sample": _step(_JUDGE_ON_SUCCESS),
}


def hindsight_mode(name: str) -> HindsightMode:
    """The composition with the paper's name ``name``; raises ValueError for an unknown one."""
    if name not in MODES:
        raise ValueError(f"unknown hindsight mode {name!r}; known: {', '.join(MODES)}")
    return MODES[name]

"""The paper's names for twenty choices of sources × granularity × combination (SERL, arXiv 2605.19447)."""

from __future__ import annotations

from typing import Literal, NamedTuple

Granularity = Literal["step", "anchor"]
Combination = Literal["all", "first_available"]


class Mode(NamedTuple):
    """What a name stands for: the keys of the section ``hindsight`` that have the names of the fields."""

    sources: tuple[str, ...]
    granularity: Granularity
    combine: Combination


_SUCCESS, _FEEDBACK = "successful_sample", "immediate_feedback"
_NEXT, _FUTURE = "next_observation", "future_trajectory"


def _step(*sources: str) -> Mode:
    return Mode(sources, "step", "all")


def _anchor(*sources: str) -> Mode:
    return Mode(sources, "anchor", "all")


MODES: dict[str, Mode] = {
    "immediate_feedback": _step(_FEEDBACK),
    "next_observation": _step(_NEXT),
    "future_trajectory": _step(_FUTURE),
    "successful_sample_immediate_feedback": _step(_SUCCESS, _FEEDBACK),
    "successful_sample_or_immediate_feedback": Mode((_SUCCESS, _FEEDBACK), "step", "first_available"),
    "successful_sample_next_observation": _step(_SUCCESS, _NEXT),
    "successful_sample_future_trajectory": _step(_SUCCESS, _FUTURE),
    "successful_sample_future_trajectory_immediate_feedback": _step(_SUCCESS, _FUTURE, _FEEDBACK),
    "successful_sample_future_trajectory_next_observation": _step(_SUCCESS, _FUTURE, _NEXT),
    "anchor_immediate_feedback": _anchor(_FEEDBACK),
    "anchor_next_observation": _anchor(_NEXT),
    "anchor_future_trajectory": _anchor(_FUTURE),
    "anchor_successful_sample_immediate_feedback": _anchor(_SUCCESS, _FEEDBACK),
    "anchor_successful_sample_or_immediate_feedback": Mode(
        (_SUCCESS, _FEEDBACK), "anchor", "first_available"
    ),
    "anchor_successful_sample_next_observation": _anchor(_SUCCESS, _NEXT),
    "anchor_successful_sample_future_trajectory": _anchor(_SUCCESS, _FUTURE),
    "anchor_successful_sample_future_trajectory_immediate_feedback": _anchor(_SUCCESS, _FUTURE, _FEEDBACK),
    "anchor_successful_sample_future_trajectory_next_observation": _anchor(_SUCCESS, _FUTURE, _NEXT),
    "judge_current_traj": _step("judge_current_traj"),
    "judge_current_traj_on_successful_sample": _step("judge_current_traj_on_successful_sample"),
}

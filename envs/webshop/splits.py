"""Which goals are for training and which are not.

``disjoint``: by product, so that no product of one split is a goal of another; a product's split depends on
its asin alone. ``original`` and ``verl_agent``: by position in the original's order of goals, as those
codebases cut it; there a product may have goals in several splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from envs.webshop.goals import Goal

Protocol = Literal["disjoint", "original", "verl_agent"]

TRAIN, VALID, TEST = SPLITS = ("train", "valid", "test")

_PERCENT_VALID = 10
_PERCENT_TEST = 10
_NUM_TEST_ORIGINAL = 500
_END_VALID_ORIGINAL = 1500
_NUM_VALID_VERL_AGENT = 500


def split_goals(goals: Sequence[Goal], protocol: Protocol) -> dict[str, tuple[Goal, ...]]:
    """The goals of each split that ``protocol`` has, in their order. Raises ValueError if splits overlap."""
    if protocol == "original":
        splits = {
            TEST: tuple(goals[:_NUM_TEST_ORIGINAL]),
            VALID: tuple(goals[_NUM_TEST_ORIGINAL:_END_VALID_ORIGINAL]),
            TRAIN: tuple(goals[_END_VALID_ORIGINAL:]),
        }
    elif protocol == "verl_agent":
        splits = {VALID: tuple(goals[:_NUM_VALID_VERL_AGENT]), TRAIN: tuple(goals[_NUM_VALID_VERL_AGENT:])}
    else:
        splits = {name: tuple(goal for goal in goals if _split_of(goal.asin) == name) for name in SPLITS}
        _assert_disjoint({name: {goal.asin for goal in part} for name, part in splits.items()}, "product")
    _assert_disjoint({name: {goal.goal_id for goal in part} for name, part in splits.items()}, "goal")
    return splits


def _split_of(asin: str) -> str:
    percentile = int.from_bytes(hashlib.sha256(asin.encode()).digest()[:4], "big") % 100
    if percentile < _PERCENT_TEST:
        return TEST
    return VALID if percentile < _PERCENT_TEST + _PERCENT_VALID else TRAIN


def _assert_disjoint(splits: dict[str, set[str]], what: str) -> None:
    seen: dict[str, str] = {}
    for name, members in splits.items():
        for member in members:
            if seen.setdefault(member, name) != name:
                raise ValueError(f"{what} {member!r} is in both splits {seen[member]!r} and {name!r}")

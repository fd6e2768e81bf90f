"""One WebShop episode as a `TextEnv`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

from envs.base import TextEnv
from envs.webshop.engine import Engine, Frame
from envs.webshop.feedback import feedback
from envs.webshop.goals import Goal
from envs.webshop.pages import SEPARATOR
from envs.webshop.shop import Shop

Reward = Literal["binary", "score"]

SEARCH_ACTION = "search[<your query>]"
FULL_SCORE = 1.0


class WebshopEnv(TextEnv):
    """Buys one thing at a time; ``find_goal`` gives the goal of a task id, or raises KeyError.

    The episode ends with the first purchase. Its score (0 to 1) is ``info["metrics"]["task_score"]``; it is a
    success if the score is 1. Reward is ``success_reward`` for a success (``binary``), or that times the
    score (``score``), else 0. There is no limit of steps: that is the caller's. A search is valid on every
    page, as in the original, but offered only where there is a search bar.
    """

    def __init__(
        self,
        shop: Shop,
        find_goal: Callable[[str], Goal],
        reward: Reward,
        success_reward: float,
        blocking: bool = False,
    ):
        self.blocking = blocking
        self.reward_range = (0.0, success_reward)
        self.shop = shop
        self._find_goal = find_goal
        self._reward = reward
        self._success_reward = success_reward
        self.engine: Engine | None = None
        self._done = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        task_id = (options or {}).get("task_id")
        if not isinstance(task_id, str):
            raise KeyError("reset needs options={'task_id': ...}")
        goal = self._find_goal(task_id)
        self.engine = Engine(self.shop, goal)
        self._task_type = self.shop.product(self.shop.catalogue.number_of(goal.asin)).category
        self._done = False
        frame = self.engine.reset()
        return _without_instruction(frame.observation, goal.instruction_text), self._info(goal, frame, None)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        engine = self.engine
        if engine is None or self._done:
            raise RuntimeError("step needs a reset first: no episode is under way")
        action = action.strip()
        chosen_before = dict(engine.options)
        frame = engine.step(action)
        self._done = frame.done
        observation = _without_instruction(frame.observation, engine.goal.instruction_text)
        comment = feedback(engine, action, frame, observation, chosen_before)
        return observation, self._reward_of(frame), frame.done, False, self._info(engine.goal, frame, comment)

    def copy(self) -> WebshopEnv:
        """Another episode in the same state; both go on independently."""
        copied = copy.copy(self)
        copied.engine = None if self.engine is None else self.engine.copy()
        return copied

    def _reward_of(self, frame: Frame) -> float:
        score = frame.reward if self._reward == "score" else float(frame.reward == FULL_SCORE)
        return self._success_reward * score

    def _info(self, goal: Goal, frame: Frame, comment: str | None) -> dict[str, Any]:
        return {
            "admissible_actions": admissible_actions(frame),
            "task_description": goal.instruction_text,
            "task_type": self._task_type,
            "success": frame.reward == FULL_SCORE,
            "action_valid": frame.accepted,
            "feedback": comment,
            "metrics": {"task_score": frame.reward},
        }


def admissible_actions(frame: Frame) -> list[str]:
    """The actions a page offers, in the page's order; none after a purchase."""
    if frame.has_search_bar:
        return [SEARCH_ACTION]
    return [f"click[{name}]" for name in frame.clickables]


def _without_instruction(observation: str, instruction: str) -> str:
    """A page without the task, which the prompt shows once."""
    parts = observation.split(SEPARATOR)
    for index in range(len(parts) - 1):
        if parts[index] == "Instruction:" and parts[index + 1] == instruction.strip():
            return SEPARATOR.join(parts[:index] + parts[index + 2 :])
    return observation

"""The searcher as an expert to be imitated, and the fixed wording of ALFWorld's prompts."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from envs.alfworld.engine import Engine
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.oracle import NoPlanError, Searcher, plan, steps_left
from envs.alfworld.prompt import system_message
from envs.base import DemonstratedAction

_REMEMBERED_ACTIONS = 100
_MAX_SOLUTION_STEPS = 15

_PROMPT_LABELS = (
    "Task:",
    "\nTurns so far:",
    "\nYou saw:",
    "\nYou did:",
    "\nYou see:",
    "\nAdmissible actions:",
)
_ENGINE_PHRASES = (
    " You are in the middle of a room. Looking quickly around you, you see",
    " You arrive at",
    ". On the",
    ", you see",
    " you see",
    " you see nothing.",
    ", you see nothing.",
    ". In it, you see",
    ". In it",
    " You open the",
    " You close the",
    " You pick up the",
    " from the",
    " You move the",
    " to the",
    " You turn on the",
    " You heat the",
    " You cool the",
    " You clean the",
    " using the",
    " is open",
    " is closed.",
    " You are facing the",
    ". Next to it",
    " You are carrying:",
    " You are not carrying anything.",
    " Nothing happens.",
    ", a",
    ", and a",
)
_COMMANDS = ("go to", "take", "open", "close", "move", "use", "heat", "cool", "clean", "slice", "examine")
_IDLE_COMMANDS = ("look", "inventory")
_FEEDBACK_PHRASES = (
    "The action worked:",
    "The action worked but told nothing new:",
    "The action worked and the task is solved:",
    "' is not an admissible action here: nothing happened.",
)


class AlfworldDemonstrator:
    """Plays by `Searcher`, which knows only what it has seen; judges actions by full-knowledge plans.

    Raises ValueError for a goal sentence that is not ALFWorld's.
    """

    def __init__(self, env: AlfworldEnv, task_description: str, rng: random.Random, detour_share: float):
        self._env = env
        self._rng = rng
        self._start = _native_engine(env).copy()
        self._searcher = Searcher(task_description, rng, detour_share)
        self._last_info: dict[str, Any] | None = None
        self._seen_actions: list[str] = []

    def act(self, observation: str, info: dict[str, Any]) -> DemonstratedAction:
        self._see(info)
        thought, action = self._searcher.act(observation, info["admissible_actions"])
        return DemonstratedAction(thought, action, self._searcher.last_action_was_random)

    def admissible_action(self, info: dict[str, Any]) -> str:
        return self._rng.choice(info["admissible_actions"])

    def inadmissible_action(self, info: dict[str, Any]) -> str | None:
        """An action of another place or time, or with a thing that is not there."""
        self._see(info)
        imagined = imagined_actions(self._searcher.goal.object, self._seen_actions)
        options = self._seen_actions if self._rng.random() < 0.5 else imagined
        refused = [action for action in options if action not in info["admissible_actions"]]
        return self._rng.choice(refused) if refused else None

    def try_out(self, action: str) -> tuple[str, bool]:
        future = self._env.copy()
        _, _, _, _, info = future.step(action)
        came_nearer = steps_left(_native_engine(future)) < steps_left(_native_engine(self._env))
        return info["feedback"], came_nearer

    def best_action(self) -> str | None:
        try:
            return plan(_native_engine(self._env))[0]
        except NoPlanError:
            return None

    def solution(self) -> tuple[str, ...]:
        """A searcher's attempt, or the planner's if that takes too long."""
        engine = self._start.copy()
        searcher = Searcher(engine.game.task_description, self._rng)
        frame = engine.copy().step("look")
        actions: list[str] = []
        while not frame.won and len(actions) < _MAX_SOLUTION_STEPS:
            _, action = searcher.act(frame.observation, frame.admissible_commands)
            frame = engine.step(action)
            actions.append(action)
        if frame.won:
            return tuple(actions)
        try:
            return tuple(plan(self._start))
        except NoPlanError:
            return ()

    def _see(self, info: dict[str, Any]) -> None:
        if info is not self._last_info:
            self._seen_actions = (self._seen_actions + info["admissible_actions"])[-_REMEMBERED_ACTIONS:]
            self._last_info = info


def prompt_phrases() -> tuple[str, ...]:
    """Stock phrases of prompt, engine, commands and feedback."""
    names = (*_COMMANDS, *_IDLE_COMMANDS)
    return (
        *(system_message(show_admissible_actions=shown) for shown in (True, False)),
        *_PROMPT_LABELS,
        *_ENGINE_PHRASES,
        *(form for name in names for form in (name, f" {name}", f", {name}")),
        *_FEEDBACK_PHRASES,
    )


def imagined_actions(object_type: str, seen_actions: Iterable[str]) -> list[str]:
    """Taking a thing of the type from every place that an action went to, whether it is there or not."""
    places = [action.removeprefix("go to ") for action in seen_actions if action.startswith("go to ")]
    return [f"take {object_type} {number} from {place}" for place in places for number in (1, 2)]


def _native_engine(env: AlfworldEnv) -> Engine:
    assert isinstance(env.engine, Engine)
    return env.engine

"""One ALFWorld episode as a `TextEnv`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Protocol

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import Game
from envs.alfworld.prompt import shorten
from envs.base import TextEnv

_WELCOME = re.compile(r"\A-= Welcome to TextWorld, ALFRED! =-\s*")
_TASK_LINE = re.compile(r"\s*^Your task is to: (.*)$", re.MULTILINE)


class GameEngine(Protocol):
    """What plays a game: the native engine or the original one."""

    def reset(self) -> Frame: ...

    def step(self, command: str) -> Frame: ...


def split_task(observation: str) -> tuple[str, str]:
    """A first observation as ``(what is seen, the task)``, without welcome line and full stop."""
    body = _WELCOME.sub("", observation)
    task = _TASK_LINE.search(body)
    if task is None:
        return body.strip(), ""
    return (body[: task.start()] + body[task.end() :]).strip(), task[1].strip().rstrip(".")


class AlfworldEnv(TextEnv):
    """Plays one game at a time; ``load`` builds a game by task id, ``make_engine`` plays it.

    ``blocking`` says that a step takes long enough to belong in a thread. Reward is ``success_reward`` at the
    step that solves the task, else 0. The game never ends before, so a limit of steps is the caller's.
    Games are deterministic: a seed changes nothing.
    """

    def __init__(
        self,
        load: Callable[[str], Game],
        make_engine: Callable[[Game], GameEngine],
        success_reward: float,
        blocking: bool = False,
    ):
        self.blocking = blocking
        self.reward_range = (0.0, success_reward)
        self._load = load
        self._make_engine = make_engine
        self._success_reward = success_reward
        self.engine: GameEngine | None = None
        self._done = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        task_id = (options or {}).get("task_id")
        if not isinstance(task_id, str):
            raise KeyError("reset needs options={'task_id': ...}")
        game = self._load(task_id)
        self.close()
        self.engine = self._make_engine(game)
        frame = self.engine.reset()
        observation, task = split_task(frame.observation)
        self.task_description, self._task_type = task or game.task_description, game.task_type
        self._admissible = frame.admissible_commands
        self._done = False
        self._known_answers = {observation}
        return observation, self._info(frame, action_valid=True, feedback=None)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.engine is None or self._done:
            raise RuntimeError("step needs a reset first: no episode is under way")
        frame = self.engine.step(action)
        valid = self._is_admissible(action)
        observation = frame.observation.strip()
        feedback = self._feedback(action, valid, observation, frame)
        self._known_answers.add(observation)
        self._admissible = frame.admissible_commands
        self._done = frame.done
        reward = self._success_reward if frame.won else 0.0
        return observation, reward, frame.done, False, self._info(frame, valid, feedback)

    def close(self) -> None:
        """Ends the episode and frees what its engine holds."""
        close_engine = getattr(self.engine, "close", None)
        if close_engine is not None:
            close_engine()
        self.engine = None

    def copy(self) -> AlfworldEnv:
        """Another episode in the same state; both go on independently. Only the native engine can."""
        if not isinstance(self.engine, Engine):
            raise RuntimeError("only an episode of the native engine can be copied")
        copied = copy.copy(self)
        copied.engine = self.engine.copy()
        copied._known_answers = set(self._known_answers)
        return copied

    def _is_admissible(self, action: str) -> bool:
        return action.strip() in self._admissible

    def _feedback(self, action: str, valid: bool, observation: str, frame: Frame) -> str:
        if not valid:
            return f"'{shorten(action)}' is not an admissible action here: nothing happened."
        if frame.won:
            return f"The action worked and the task is solved: {observation}"
        if frame.done:
            return f"The action ended the game and the task is not solved: {observation}"
        if observation in self._known_answers:
            return f"The action worked but told nothing new: {observation}"
        return f"The action worked: {observation}"

    def _info(self, frame: Frame, action_valid: bool, feedback: str | None) -> dict[str, Any]:
        return {
            "admissible_actions": list(frame.admissible_commands),
            "task_description": self.task_description,
            "task_type": self._task_type,
            "success": frame.won,
            "action_valid": action_valid,
            "feedback": feedback,
        }

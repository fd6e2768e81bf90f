"""`env.name: gymnasium`: any environment of gymnasium's registry whose observations are text.

An action is text, or one of a number of actions that have names.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Discrete, Text
from pydantic import Field, PositiveInt

from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, StepAnswer, TaskSet, TextEnv
from envs.hubs.seeds import SeedTasks


class GymnasiumArguments(EnvironmentArguments):
    """``env.args`` of the environment ``gymnasium``.

    ``id`` and ``options``: as `gymnasium.make` takes them; ``MODULE:Name-v0`` imports the module first.
    ``description``: the task in words, which begins each prompt. ``actions``: the names of a `Discrete`
    environment's actions, in order. Tasks are seeds: ``num_train`` from ``seed`` on, then ``num_valid``.
    ``success``: an episode with at least this return, or whose ``info`` says so under ``success``.
    ``blocking``: its calls take longer than a millisecond, and run in threads.
    """

    id: str
    options: dict[str, Any] = Field(default_factory=dict)
    description: str
    actions: tuple[str, ...] = ()
    num_train: PositiveInt = 1000
    num_valid: PositiveInt = 100
    seed: int = Field(default=0, ge=0)
    success: float = 1.0
    blocking: bool = False


class GymnasiumTextEnv(TextEnv):
    """An environment of gymnasium, with what SERL asks of an ``info`` beside its own."""

    def __init__(self, provider: GymnasiumProvider) -> None:
        self._provider = provider
        self._env = provider.make()
        self.blocking = provider.arguments.blocking
        self._ended = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        seen, info = self._env.reset(seed=self._provider.seeds.seed_of((options or {})["task_id"]))
        self._observation, self._return, self._ended = seen, 0.0, False
        return self._observation, self._info(info, is_valid=True)

    def step(self, action: str) -> StepAnswer:
        if self._ended:
            raise RuntimeError("step needs a reset first")
        taken = self._provider.action(action)
        if taken is None:
            info = self._info({}, is_valid=False) | {"feedback": "That is no action here."}
            return self._observation, 0.0, False, False, info
        seen, reward, terminated, truncated, info = self._env.step(taken)
        self._observation = seen
        self._return += float(reward)
        self._ended = terminated or truncated
        told = self._info(info, is_valid=bool(info.get("action_valid", True)))
        return self._observation, float(reward), terminated, truncated, told

    def close(self) -> None:
        self._env.close()

    def _info(self, info: dict[str, Any], is_valid: bool) -> dict[str, Any]:
        arguments = self._provider.arguments
        reached = self._ended and self._return >= arguments.success
        feedback = info.get("feedback")
        return {
            "admissible_actions": list(info.get("admissible_actions", arguments.actions)),
            "task_description": arguments.description,
            "task_type": arguments.id,
            "success": bool(info.get("success", reached)),
            "action_valid": is_valid,
            "feedback": feedback if isinstance(feedback, str) else None,
        }


class GymnasiumProvider:
    """Tasks are the seeds that the environment is reset with."""

    def __init__(self, arguments: GymnasiumArguments) -> None:
        self.arguments = arguments
        env_id = arguments.model_dump_json(include={"id", "options", "actions"})
        numbers = arguments.seed, arguments.num_train, arguments.num_valid
        self.seeds = SeedTasks(arguments.id, env_id, *numbers)
        env = self.make()
        space = env.action_space
        if not isinstance(env.observation_space, Text):
            raise ValueError(
                f"env.args.id: the observations of {arguments.id} are no text: {env.observation_space}"
            )
        if isinstance(space, Discrete):
            if len(arguments.actions) != space.n:
                raise ValueError(f"env.args.actions: {arguments.id} has {space.n} actions; name each")
        elif not isinstance(space, Text):
            raise ValueError(
                f"env.args.id: the actions of {arguments.id} are neither text nor numbered: {space}"
            )
        self._first = int(space.start) if isinstance(space, Discrete) else None
        env.close()

    def make(self) -> gymnasium.Env[Any, Any]:
        """Raises ValueError for an id that gymnasium does not know, or options that it does not take."""
        try:
            return gymnasium.make(self.arguments.id, **self.arguments.options)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"env.args.id: {self.arguments.id!r}: {error}") from error

    def task_set(self, split: str) -> TaskSet:
        """See `SeedTasks`."""
        return self.seeds.task_set(split)

    def make_env(self) -> TextEnv:
        return GymnasiumTextEnv(self)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        named = f" One of: {', '.join(parts.admissible_actions)}." if parts.admissible_actions else ""
        past = "".join(f"{turn.observation}\n> {turn.action}\n" for turn in parts.history)
        asked = f"Answer with <action>…</action>.{named}"
        return (
            {"role": "system", "content": f"{parts.task_description}\n{asked}"},
            {"role": "user", "content": f"{past}{parts.observation}"},
        )

    def turn_messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Later turns name the actions only where the environment itself does."""
        if not parts.num_past_turns:
            return self.messages(parts)
        actions = parts.admissible_actions
        is_known = not actions or actions == self.arguments.actions
        named = "" if is_known else f"\nOne of: {', '.join(actions)}."
        return ({"role": "user", "content": f"{parts.observation}{named}"},)

    def action(self, text: str) -> Any:
        """What the environment takes for ``text``; None for the name of no action."""
        if self._first is None:
            return text
        names = self.arguments.actions
        return self._first + names.index(text) if text in names else None


def make_provider(args: dict[str, Any]) -> GymnasiumProvider:
    """The environment of ``env.args``. Raises ValueError for wrong ones."""
    return GymnasiumProvider(parse_arguments(GymnasiumArguments, args))

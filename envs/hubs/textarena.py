"""`env.name: textarena`: TextArena's games for one player.

Source: textarena on PyPI (MIT). Games that download word lists when they start, or ask another model over the
network, are refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field, PositiveInt

from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, StepAnswer, TaskSet, TextEnv
from envs.hubs.packages import require
from envs.hubs.seeds import SeedTasks
from serl.config.nearest import name_hint

_NOTHING_SAID = "Your move."
_INSTRUCTION = "Give your move as <action>MOVE</action>, MOVE in the form that the game asks for."


class TextArenaArguments(EnvironmentArguments):
    """``env.args`` of the environment ``textarena``.

    ``game``: its id, such as ``GuessTheNumber-v0``. Tasks are seeds: ``num_train`` from ``seed`` on, then
    ``num_valid``. A game's reward is TextArena's, given with the last move; 1 is a success.
    """

    game: str
    num_train: PositiveInt = 1000
    num_valid: PositiveInt = 100
    seed: int = Field(default=0, ge=0)


class TextArenaEnv(TextEnv):
    """One game; its random draws are its own, though TextArena takes them from Python's generator."""

    reward_range = (-1.0, 1.0)

    def __init__(self, provider: TextArenaProvider) -> None:
        self._provider = provider
        self._game = provider.make()
        self._random = random.Random()
        self._ended = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        number = self._provider.seeds.seed_of((options or {})["task_id"])
        self._random.seed(number)
        with self._own_draws():
            self._game.reset(num_players=1, seed=number)
        self._rules, seen = self._messages()
        self._ended = False
        return seen, self._info(0)

    def step(self, action: str) -> StepAnswer:
        if self._ended:
            raise RuntimeError("step needs a reset first")
        with self._own_draws():
            self._ended, _ = self._game.step(action)
        state = self._game.state
        _, seen = self._messages()
        if not self._ended:
            return seen, 0.0, False, False, self._info(state.error_count, seen)
        reason = state.game_info[0].get("reason") or seen
        info = self._info(state.game_info[0]["invalid_move"], reason)
        reward = float(state.rewards[0])
        return reason, reward, True, False, info | {"success": reward >= 1.0}

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        others = random.getstate()
        random.setstate(self._random.getstate())
        try:
            yield
        finally:
            self._random.setstate(random.getstate())
            random.setstate(others)

    def _messages(self) -> tuple[str, str]:
        """The rules, where they are among what was said since the last move, and the rest of it."""
        _, messages = self._game.get_observation()
        kinds = self._provider.package.ObservationType
        told = [(text, kind) for _, text, kind in messages if kind != kinds.PLAYER_ACTION]
        rules = "\n".join(text for text, kind in told if kind == kinds.PROMPT)
        return rules, "\n".join(text for text, kind in told if kind != kinds.PROMPT)

    def _info(self, invalid: Any, feedback: str | None = None) -> dict[str, Any]:
        return {
            "admissible_actions": [],
            "task_description": self._rules,
            "task_type": self._provider.arguments.game,
            "success": False,
            "action_valid": not invalid,
            "feedback": feedback,
        }


class TextArenaProvider:
    """Tasks are the seeds that the game is reset with."""

    def __init__(self, arguments: TextArenaArguments) -> None:
        self.arguments = arguments
        game, seed = arguments.game, arguments.seed
        self.seeds = SeedTasks(game, game, seed, arguments.num_train, arguments.num_valid)
        self.package = require("textarena", "textarena")
        known = require("textarena.envs.registration", "textarena").ENV_REGISTRY
        if f"{game}-raw" not in known:
            raise ValueError(f"env.args.game: {game!r} is no game{name_hint(game, known)}")
        try:
            self.make_env().reset(options={"task_id": str(seed)})
        except Exception as error:  # a game may raise anything where it cannot be played here
            raise ValueError(f"env.args.game: {game}: {error}") from error

    def make(self) -> Any:
        """The game, without TextArena's own rendering of its history; raises what it does."""
        nltk = require("nltk", "textarena")
        download, nltk.download = nltk.download, _refuse_download
        try:
            return self.package.make(f"{self.arguments.game}-raw")
        finally:
            nltk.download = download

    def task_set(self, split: str) -> TaskSet:
        """See `SeedTasks`."""
        return self.seeds.task_set(split)

    def make_env(self) -> TextEnv:
        return TextArenaEnv(self)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        past = "".join(f"{turn.observation}\n> {turn.action}\n" for turn in parts.history)
        now = f"{past}{parts.observation}".strip() or _NOTHING_SAID
        rules = f"{parts.task_description.strip()}\n{_INSTRUCTION}"
        return ({"role": "system", "content": rules}, {"role": "user", "content": now})

    def turn_messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        if not parts.num_past_turns:
            return self.messages(parts)
        return ({"role": "user", "content": parts.observation.strip() or _NOTHING_SAID},)


def _refuse_download(what: str, *args: Any, **options: Any) -> bool:
    raise RuntimeError(f"it would download NLTK's {what!r} when it starts, which SERL does not let it")


def make_provider(args: dict[str, Any]) -> TextArenaProvider:
    """The game of ``env.args``. Raises ValueError for wrong ones, and without the package."""
    return TextArenaProvider(parse_arguments(TextArenaArguments, args))

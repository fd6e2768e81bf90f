"""The original engine, TextWorld, behind the interface of ours: to compare with, not to train with.

It takes about 80 ms a step and 1 s to start, keeps memory after it is closed, and must stay in one thread.
"""

from __future__ import annotations

import importlib
from typing import Any

from envs.alfworld.engine import Frame
from envs.alfworld.game import UNKNOWN_GOAL, Game


class MissingTextWorldError(ImportError):
    """The original engine is not installed."""

    def __init__(self, error: ImportError) -> None:
        super().__init__(
            "the original ALFWorld engine needs TextWorld: pip install textworld fast-downward-textworld "
            f"({error})"
        )


class TextWorldEngine:
    """One episode of a game in the original engine."""

    def __init__(self, game: Game) -> None:
        """Start TextWorld with the rules and the problem of `game`.

        Raises:
            MissingTextWorldError: `textworld`, or what it needs, is not installed.
        """
        try:
            textworld = importlib.import_module("textworld")
            importlib.import_module("fast_downward")
            pddl_env = importlib.import_module("textworld.envs.pddl").PddlEnv
            demangler = importlib.import_module("alfworld.agents.environment.alfred_tw_env").AlfredDemangler
        except ImportError as error:
            raise MissingTextWorldError(error) from error
        self.game = game
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._env: Any = demangler(pddl_env(infos), shuffle=False)
        self._env.load(
            {
                "pddl_domain": game.logic.domain,
                "grammar": game.logic.grammar.replace(UNKNOWN_GOAL, game.task_description),
                "pddl_problem": game.problem_pddl,
            }
        )

    def reset(self) -> Frame:
        """Back to the first state; the observation is the opening with the task."""
        return self._frame(self._env.reset())

    def step(self, command: str) -> Frame:
        """Do `command`; call `reset` first."""
        state, _, _ = self._env.step(command)
        return self._frame(state)

    def close(self) -> None:
        """Free most of what the planner library holds; the engine cannot be used any more."""
        self._env.unwrapped.downward_lib.cleanup()

    def _frame(self, state: Any) -> Frame:
        won = bool(state["won"])
        return Frame(state.feedback, list(state["admissible_commands"]), won, won, int(won))

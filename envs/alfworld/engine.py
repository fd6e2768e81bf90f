"""Episodes of ALFWorld games: the same texts, commands and wins as the original TextWorld engine's.

Departures from the original, none of which ALFWorld's games show:
- where one command stands for several actions, the last one found is done, not the first of the planner's;
- a game whose goal can never be reached can be played, the original crashes on it;
- the task's sentence is shown as it is, the original cuts it at characters that its grammar reserves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from envs.alfworld.game import Game

NOTHING_HAPPENS = "Nothing happens."


@dataclass(frozen=True, slots=True)
class Frame:
    """What the player sees after a reset or a step; `score` is 1 while the goal holds, else 0."""

    observation: str
    admissible_commands: list[str]
    won: bool
    done: bool
    score: int


class Engine:
    """One episode of a game. Engines share nothing they change, so each may run in its own thread.

    The game goes on after a win, and `won` follows the goal: taking the object back undoes it.
    """

    __slots__ = ("game", "_facts", "_found", "_commands", "_admissible", "_won")

    def __init__(self, game: Game) -> None:
        self.game = game
        self._start()

    def _start(self) -> None:
        self._facts = self.game.first_facts.copy()
        self._found = list(self.game.first_found)
        self._won = self.game.first_won
        self._list_commands()

    def reset(self) -> Frame:
        """Back to the first state; the observation is the opening with the task."""
        self._start()
        return self._frame(self.game.opening)

    def step(self, command: str) -> Frame:
        """Do `command`, if it is admissible but for white space around it; else nothing happens."""
        chosen = self._commands.get(command.strip())
        if chosen is None:
            return self._frame(NOTHING_HAPPENS)
        changed = chosen.action.apply(chosen.args, self._facts)
        feedback = chosen.action.feedback(chosen.args, self._facts)
        self._refresh(changed)
        return self._frame(feedback)

    def copy(self) -> Engine:
        """Another episode of the same game, in the same state."""
        copied = Engine.__new__(Engine)
        copied.game = self.game
        copied._facts = self._facts.copy()
        copied._found = self._found.copy()
        copied._commands = self._commands
        copied._admissible = self._admissible
        copied._won = self._won
        return copied

    def _frame(self, observation: str) -> Frame:
        return Frame(observation, list(self._admissible), self._won, self._won, int(self._won))

    def _refresh(self, changed: Iterable[str]) -> None:
        """Find anew the commands and the win, where they depend on the `changed` predicates."""
        game = self.game
        stale = {at for predicate in changed for at in game.readers[predicate]}
        if stale:
            for at in stale:
                self._found[at] = game.actions[at].applicable(self._facts)
            self._list_commands()
        if not game.goal_reads.isdisjoint(changed):
            self._won = any(matcher.bindings(self._facts) for matcher in game.goal_matchers)

    def _list_commands(self) -> None:
        self._commands = {command: ground for found in self._found for command, ground in found}
        self._admissible = sorted(self._commands)

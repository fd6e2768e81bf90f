"""Episodes of ALFWorld games: the same texts, commands and wins as the original TextWorld engine's.

Departures from the original, none of which ALFWorld's games show:
- where one command stands for several actions, the last one found is done, not the first of the planner's;
- a game whose goal can never be reached can be played, the original crashes on it;
- the task's sentence is shown as it is, the original cuts it at characters that its grammar reserves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from envs.alfworld.actions import GroundAction
from envs.alfworld.facts import EVERYWHERE, Fact
from envs.alfworld.game import Game
from envs.alfworld.matching import evaluate
from envs.alfworld.pddl import Condition

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

    @property
    def won(self) -> bool:
        return self._won

    @property
    def admissible_actions(self) -> dict[str, GroundAction]:
        """The action behind each admissible command; not to be changed."""
        return self._commands

    def facts(self, predicate: str, position: int = EVERYWHERE, value: str = "") -> tuple[Fact, ...]:
        """The sorted facts of `predicate` (lower case) that hold.

        With `position` and `value`: those whose argument at `position`, counted from 1, is the id `value`;
        only for predicates of two or more arguments.
        """
        fluent = predicate in self.game.world.domain.fluents
        source = self._facts if fluent else self.game.world.static
        return source.matching(predicate, position, value)

    def holds(self, predicate: str, *args: str) -> bool:
        """Whether the fact holds; names are in lower case."""
        fact = (predicate, *args)
        return fact in self._facts.present or fact in self.game.world.static.present

    def satisfies(self, condition: Condition) -> bool:
        """Whether `condition`, such as the game's goal or a part of it, holds."""
        return evaluate(condition, {}, self.game.world, self._facts)

    @property
    def location(self) -> str:
        """The id of the agent's location."""
        return self._facts.matching("atlocation")[0][2]

    @property
    def held_object(self) -> str | None:
        """The id of the object in the agent's hand."""
        held = self._facts.matching("holds")
        return held[0][2] if held else None

    def receptacles_at(self, location: str) -> list[str]:
        """Ids of the receptacles at a location."""
        return [fact[1] for fact in self.facts("receptacleatlocation", 2, location)]

    def contents(self, receptacle: str) -> list[str]:
        """Ids of the objects in a receptacle, seen or not."""
        return [fact[1] for fact in self.facts("inreceptacle", 2, receptacle)]

    def is_closed(self, receptacle: str) -> bool:
        """Whether the receptacle must be opened before its contents can be taken."""
        return self.holds("openable", receptacle) and not self.holds("opened", receptacle)

    def name(self, object_id: str) -> str:
        """The name of an object, receptacle or location in the texts."""
        return self.game.entities[object_id].name

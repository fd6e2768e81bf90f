"""Actions of one game: which of their commands apply, what they change, what they answer."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple, TypeAlias

from envs.alfworld.domain import ALWAYS, ActionSchema, Effect, Rule, rule_literals
from envs.alfworld.facts import Fact, Facts
from envs.alfworld.grammar import ActionText
from envs.alfworld.matching import RuleMatcher, World, assignments, evaluate
from envs.alfworld.pddl import Literal
from envs.alfworld.text import TextWriter
from envs.alfworld.text_syntax import ForEach, Listing, Placeholder, Reference, Symbol, Text, Value

MEMO_SIZE = 256
Term: TypeAlias = int | str
"""A variable's place in a binding, or a constant."""


class GroundAction(NamedTuple):
    """An action with its arguments (object ids), for one command."""

    action: Action
    args: tuple[str, ...]

    @property
    def name(self) -> str:
        """The action's name in the domain, in lower case."""
        return self.action.schema.name


class Action:
    """One action schema in one game. It holds no state of an episode; facts are passed in."""

    __slots__ = (
        "schema",
        "reads",
        "_read",
        "_effects",
        "_world",
        "_writer",
        "_text",
        "_placeholders",
        "_matchers",
        "_key",
        "_commands",
        "_needed",
        "_only_fluent",
        "_by_facts",
    )

    def __init__(self, schema: ActionSchema, text: ActionText, writer: TextWriter, read: Set[str]) -> None:
        """Prepare `schema` for the game of `writer`; effects on predicates not in `read` are left out."""
        self.schema = schema
        self._read = read
        slots = {name: slot for slot, (name, _) in enumerate(schema.parameters)}
        self._effects = [
            (effect, tuple(slots.get(arg, arg) for arg in effect.literal.args))
            for effect in schema.effects
            if not read.isdisjoint((effect.literal.predicate, f"not_{effect.literal.predicate}"))
        ]
        self.reads = frozenset(literal.predicate for rule in schema.rules for literal in rule_literals(rule))
        self._world = writer.world
        self._writer = writer
        self._text = text
        self._placeholders = tuple(
            Placeholder(name.removeprefix("?"), type_name) for name, type_name in schema.parameters
        )
        # a rule over a type that no object has can never apply
        self._matchers = [
            (RuleMatcher(rule, self._world), ChangeTest(rule, schema.effects))
            for rule in schema.rules
            if all(self._world.instances(type_name) for _, type_name in rule.variables)
        ]
        self._key = _memo_key(text.template, self._placeholders, self._world)
        if self._key is None:
            self.reads |= self._world.domain.fluents
        # what was found before, by what it depends on; filling these from two threads does no harm
        self._commands: dict[tuple[str, ...], str] = {}
        fluents = self.reads & self._world.domain.fluents
        self._needed = [
            name for name in sorted(fluents) if all(_requires(rule, name) for rule in schema.rules)
        ]
        self._only_fluent = next(iter(fluents)) if len(fluents) == 1 else None
        self._by_facts: dict[tuple[Fact, ...], list[tuple[str, GroundAction]]] = {}

    def applicable(self, facts: Facts) -> list[tuple[str, GroundAction]]:
        """Every command of this action that applies, with the action it stands for; not to be changed."""
        for needed in self._needed:
            if not facts.matching(needed):
                return NOTHING
        if self._only_fluent is None:
            return self._find(facts)
        # most of these depend on the agent's location alone: a few dozen different lists a game
        read = facts.matching(self._only_fluent)
        found = self._by_facts.get(read)
        if found is None:
            found = self._find(facts)
            if len(self._by_facts) < MEMO_SIZE:
                self._by_facts[read] = found
        return found

    def _find(self, facts: Facts) -> list[tuple[str, GroundAction]]:
        found: dict[tuple[str, ...], None] = {}
        size = len(self._placeholders)
        for matcher, changes in self._matchers:
            for binding in matcher.bindings(facts):
                if changes.always or changes(binding):
                    found[binding[:size]] = None
        return [(self._command(args, facts), GroundAction(self, args)) for args in found] if found else []

    def apply(self, args: tuple[str, ...], facts: Facts) -> set[str]:
        """Change `facts` as the action does; returns the predicates whose facts changed."""
        added: list[Fact] = []
        removed: list[Fact] = []
        for effect, terms in self._effects:
            fired = added if effect.literal.positive else removed
            if not effect.variables and effect.condition is ALWAYS:
                fired.append((effect.literal.predicate, *[_term(term, args) for term in terms]))
            else:
                fired.extend(self._conditional(effect, args, facts))
        changed: set[str] = set()
        for fact in removed:
            if fact not in added:
                if facts.discard(fact):
                    changed.add(fact[0])
                # texts can ask for what an action has made false, but not for what was never true
                if f"not_{fact[0]}" in self._read:
                    facts.add((f"not_{fact[0]}", *fact[1:]))
        for fact in added:
            if facts.add(fact):
                changed.add(fact[0])
            if f"not_{fact[0]}" in self._read:
                facts.discard((f"not_{fact[0]}", *fact[1:]))
        return changed

    def _conditional(self, effect: Effect, args: tuple[str, ...], facts: Facts) -> list[Fact]:
        values = {name: value for (name, _), value in zip(self.schema.parameters, args, strict=True)}
        return [
            (effect.literal.predicate, *[inner.get(arg, arg) for arg in effect.literal.args])
            for inner in assignments(effect.variables, values, self._world)
            if evaluate(effect.condition, inner, self._world, facts)
        ]

    def feedback(self, args: tuple[str, ...], facts: Facts) -> str:
        """What the game answers, once `facts` are changed."""
        scope = self._writer.scope(dict(zip(self._placeholders, args, strict=True)))
        return self._writer.write(self._text.feedback, scope, facts)

    def _command(self, args: tuple[str, ...], facts: Facts) -> str:
        if self._key is None:
            return self._write_command(args, facts)
        key = tuple([args[at] for at in self._key])
        command = self._commands.get(key)
        if command is None:
            command = self._commands[key] = self._write_command(args, facts)
        return command

    def _write_command(self, args: tuple[str, ...], facts: Facts) -> str:
        scope = self._writer.scope(dict(zip(self._placeholders, args, strict=True)))
        return self._writer.write(self._text.template, scope, facts)


NOTHING: list[tuple[str, GroundAction]] = []


def _requires(rule: Rule, predicate: str) -> bool:
    return any(literal.positive and literal.predicate == predicate for literal in rule.literals)


class ChangeTest:
    """Whether an action changes anything beyond what its rule requires; the original drops those that do not.

    This is why `go to` is not admissible for a receptacle at the agent's own location.
    """

    __slots__ = ("always", "_effects")

    def __init__(self, rule: Rule, effects: tuple[Effect, ...]) -> None:
        slots = {name: slot for slot, (name, _) in enumerate(rule.variables)}
        added = [effect.literal for effect in effects if effect.literal.positive and not effect.variables]
        # per effect: the ways in which its fact may be known before, as arguments that must agree
        self._effects: list[list[list[tuple[Term, Term]]]] = []
        for effect in effects:
            literal = effect.literal
            known = [required for required in rule.literals if required.positive is literal.positive]
            if not literal.positive:
                known += added
            ways = [] if effect.variables else [_agreement(literal, other, slots) for other in known]
            self._effects.append([way for way in ways if way is not None])
        self.always = not all(self._effects)

    def __call__(self, binding: tuple[str, ...]) -> bool:
        return not all(
            any(all(_term(left, binding) == _term(right, binding) for left, right in way) for way in ways)
            for ways in self._effects
        )


def _agreement(literal: Literal, other: Literal, slots: dict[str, int]) -> list[tuple[Term, Term]] | None:
    """Which arguments must be equal for both literals to be about one fact; None if they never are."""
    if literal.predicate != other.predicate:
        return None
    pairs = zip(literal.args, other.args, strict=True)
    return [(slots.get(left, left), slots.get(right, right)) for left, right in pairs if left != right]


def _term(term: Term, binding: tuple[str, ...]) -> str:
    return binding[term] if isinstance(term, int) else term


def _memo_key(
    template: tuple[Symbol, ...], placeholders: tuple[Placeholder, ...], world: World
) -> tuple[int, ...] | None:
    """Positions of the arguments that a command depends on, or None if it also depends on the state."""
    names: set[str] = set()
    pending = list(template)
    while pending:
        symbol = pending.pop()
        if isinstance(symbol, Reference):
            return None
        if isinstance(symbol, Listing):
            pending.append(symbol.items)
        elif isinstance(symbol, ForEach):
            for atom in symbol.query:
                if atom.predicate.removeprefix("not_") in world.domain.fluents:
                    return None
                if not set(atom.placeholders) <= set(placeholders):
                    return None
                names |= {placeholder.name for placeholder in atom.placeholders}
            pending.append(symbol.content)
        elif isinstance(symbol, Value):
            names |= symbol.names
        else:
            assert isinstance(symbol, Text)
    return tuple(at for at, placeholder in enumerate(placeholders) if placeholder.name in names)

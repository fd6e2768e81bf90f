"""Find every binding of a rule's variables that the facts allow.

A rule is compiled once per game into a chain of closures `(binding, facts, found)`: each step binds or checks
some variables and calls the next, the last appends a copy of the binding. Steps are ordered so that
literals with few matching facts come first.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from envs.alfworld.domain import Domain, Rule
from envs.alfworld.facts import EVERYWHERE, Fact, Facts
from envs.alfworld.pddl import And, Condition, Exists, Forall, Literal, Or, TypedName

Binding: TypeAlias = list[str]
Step: TypeAlias = Callable[[Binding, Facts, "list[tuple[str, ...]]"], None]
Value: TypeAlias = Callable[[Binding], str]


@dataclass(frozen=True, slots=True)
class World:
    """What never changes in a game: its domain, the facts no action touches, and objects by type.

    `fanout` has the number of facts of each predicate in the first state (position 0), and of different
    values of its arguments (positions from 1).
    """

    domain: Domain
    static: Facts
    objects: Mapping[str, Mapping[str, None]]
    fanout: Mapping[tuple[str, int], float]

    def instances(self, type_name: str) -> Mapping[str, None]:
        """The objects of a type, sorted: keys only."""
        return self.objects.get(type_name, {})


def evaluate(condition: Condition, values: dict[str, str], world: World, facts: Facts) -> bool:
    """Whether `condition` holds; `values` gives its free variables' values."""
    if isinstance(condition, Literal):
        args = tuple(values.get(arg, arg) for arg in condition.args)
        if condition.predicate == "=":
            return (args[0] == args[1]) is condition.positive
        fact = (condition.predicate, *args)
        return (fact in facts.present or fact in world.static.present) is condition.positive
    if isinstance(condition, And):
        return all(evaluate(part, values, world, facts) for part in condition.parts)
    if isinstance(condition, Or):
        return any(evaluate(part, values, world, facts) for part in condition.parts)
    inner = assignments(condition.variables, values, world)
    outcomes = (evaluate(condition.part, each, world, facts) for each in inner)
    return any(outcomes) if isinstance(condition, Exists) else all(outcomes)


def assignments(
    variables: tuple[TypedName, ...], values: dict[str, str], world: World
) -> Iterator[dict[str, str]]:
    """`values` extended by every choice of objects for `variables`."""
    if not variables:
        yield values
        return
    (name, type_name), *rest = variables
    for value in world.instances(type_name):
        yield from assignments(tuple(rest), values | {name: value}, world)


class RuleMatcher:
    """The bindings of one rule's variables, in the order in which the rule lists them."""

    __slots__ = ("_first", "_size")

    def __init__(self, rule: Rule, world: World) -> None:
        self._size = len(rule.variables)
        self._first = _compile(rule, world)

    def bindings(self, facts: Facts) -> list[tuple[str, ...]]:
        """Every binding; one for each way to satisfy the rule, in no particular order."""
        found: list[tuple[str, ...]] = []
        self._first([""] * self._size, facts, found)
        return found


def _compile(rule: Rule, world: World) -> Step:
    slots = {name: slot for slot, (name, _) in enumerate(rule.variables)}
    types = dict(rule.variables)
    bound: set[str] = set()
    pending = list(rule.literals)
    makers: list[Callable[[Step], Step]] = []
    while pending or len(bound) < len(slots):
        for literal in [found for found in pending if _free(found, slots) <= bound]:
            pending.remove(literal)
            makers.append(_check(literal, slots, world))
        positive = [literal for literal in pending if literal.positive and literal.predicate != "="]
        if positive:
            literal = min(positive, key=lambda candidate: _estimate(candidate, slots, bound, world))
            pending.remove(literal)
            makers.append(_expand(literal, slots, types, frozenset(bound), world))
            bound |= _free(literal, slots)
        else:
            unbound = next((name for name in slots if name not in bound), None)
            if unbound is not None:
                makers.append(_enumerate(slots[unbound], world.instances(types[unbound])))
                bound.add(unbound)
    makers.extend(_check_universal(universal, slots, world) for universal in rule.universals)
    step: Step = _collect
    for maker in reversed(makers):
        step = maker(step)
    return step


def _collect(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
    found.append(tuple(binding))


def _free(literal: Literal, slots: Mapping[str, int]) -> set[str]:
    return {arg for arg in literal.args if arg in slots}


def _estimate(literal: Literal, slots: Mapping[str, int], bound: set[str], world: World) -> float:
    """About how many facts match `literal` once `bound` is bound, judged by the game's first state."""
    estimate = world.fanout.get((literal.predicate, EVERYWHERE), 0.0)
    for position, arg in enumerate(literal.args, 1):
        if arg in bound or arg not in slots:
            estimate /= max(world.fanout.get((literal.predicate, position), 1.0), 1.0)
    return estimate


def _value(arg: str, slots: Mapping[str, int]) -> Value:
    if arg not in slots:
        return lambda binding: arg
    slot = slots[arg]
    return lambda binding: binding[slot]


def _fact_maker(literal: Literal, slots: Mapping[str, int]) -> Callable[[Binding], Fact]:
    predicate = literal.predicate
    values = [_value(arg, slots) for arg in literal.args]
    if len(values) == 1 and literal.args[0] in slots:
        slot = slots[literal.args[0]]
        return lambda binding: (predicate, binding[slot])
    if len(values) == 2:
        first, second = values
        return lambda binding: (predicate, first(binding), second(binding))
    return lambda binding: (predicate, *[value(binding) for value in values])


def _check(literal: Literal, slots: Mapping[str, int], world: World) -> Callable[[Step], Step]:
    make = _fact_maker(literal, slots)
    positive = literal.positive
    if literal.predicate == "=":

        def equality(following: Step) -> Step:
            def step(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
                fact = make(binding)
                if (fact[1] == fact[2]) is positive:
                    following(binding, facts, found)

            return step

        return equality
    if literal.predicate in world.domain.fluents:

        def fluent(following: Step) -> Step:
            def step(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
                if (make(binding) in facts.present) is positive:
                    following(binding, facts, found)

            return step

        return fluent

    present = world.static.present

    def static(following: Step) -> Step:
        def step(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
            if (make(binding) in present) is positive:
                following(binding, facts, found)

        return step

    return static


def _check_universal(universal: Forall, slots: Mapping[str, int], world: World) -> Callable[[Step], Step]:
    def maker(following: Step) -> Step:
        def step(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
            values = {name: binding[slot] for name, slot in slots.items()}
            if evaluate(universal, values, world, facts):
                following(binding, facts, found)

        return step

    return maker


def _enumerate(slot: int, instances: Iterable[str]) -> Callable[[Step], Step]:
    def maker(following: Step) -> Step:
        def step(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
            for instance in instances:
                binding[slot] = instance
                following(binding, facts, found)

        return step

    return maker


def _expand(
    literal: Literal, slots: Mapping[str, int], types: Mapping[str, str], bound: frozenset[str], world: World
) -> Callable[[Step], Step]:
    """A step that goes through the facts of `literal` and binds its variables that are not in `bound`."""
    predicate = literal.predicate
    known = [at for at, arg in enumerate(literal.args, 1) if arg in bound or arg not in slots]
    position = max(known, key=lambda at: world.fanout.get((predicate, at), 0.0), default=EVERYWHERE)
    value = _value(literal.args[position - 1], slots) if position else lambda binding: ""
    binds: list[tuple[int, int, Container[str]]] = []
    compares: list[tuple[int, Value]] = []
    seen: set[str] = set()
    for at, arg in enumerate(literal.args, 1):
        if at in known or arg in seen:
            if at != position:
                compares.append((at, _value(arg, slots)))
        else:
            seen.add(arg)
            binds.append((at, slots[arg], world.instances(types[arg])))
    static = None if predicate in world.domain.fluents else world.static

    def maker(following: Step) -> Step:
        def step(binding: Binding, facts: Facts, found: list[tuple[str, ...]]) -> None:
            source = facts if static is None else static
            for fact in source.index.get((predicate, position, value(binding)), ()):
                for at, slot, allowed in binds:
                    if fact[at] not in allowed:
                        break
                    binding[slot] = fact[at]
                else:
                    if not compares or all(fact[at] == other(binding) for at, other in compares):
                        following(binding, facts, found)

        return step

    return maker

"""The PDDL domain: object types and action schemas, with conditions split into plain rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from envs.alfworld.pddl import (
    And,
    Condition,
    Exists,
    Expression,
    Forall,
    Literal,
    Or,
    PddlError,
    TypedName,
    as_list,
    as_words,
    parse_condition,
    parse_expression,
    parse_typed_names,
    sections,
)

MAX_RULES = 1000
ALWAYS = And(())
"""The condition that always holds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A conjunction over typed variables: one disjunct of a condition, its existentials pulled out."""

    variables: tuple[TypedName, ...]
    literals: tuple[Literal, ...]
    universals: tuple[Forall, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """`literal` becomes true for every value of `variables` for which `condition` holds before the action."""

    variables: tuple[TypedName, ...]
    condition: Condition
    literal: Literal


@dataclass(frozen=True, slots=True)
class ActionSchema:
    """An action: applicable if one of `rules` is, whose first variables are `parameters`."""

    name: str
    parameters: tuple[TypedName, ...]
    rules: tuple[Rule, ...]
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """Action schemas by name, each type's supertypes, each predicate's number of arguments.

    `fluents` are the predicates that actions change.
    """

    schemas: dict[str, ActionSchema]
    supertypes: dict[str, frozenset[str]]
    arities: dict[str, int]
    fluents: frozenset[str]

    def check_use(self, predicate: str, arguments: int) -> None:
        """Raise PddlError unless `predicate` is declared and takes that many arguments."""
        if predicate not in self.arities:
            raise PddlError(f"undeclared predicate {predicate!r}")
        if self.arities[predicate] != arguments:
            raise PddlError(
                f"predicate {predicate!r} takes {self.arities[predicate]} arguments, not {arguments}"
            )


def split_condition(condition: Condition) -> list[Rule]:
    """The disjuncts of `condition`; it holds where one of them does.

    Raises:
        PddlError: there are more than MAX_RULES.
    """
    if isinstance(condition, Literal):
        return [Rule((), (condition,), ())]
    if isinstance(condition, Forall):
        return [Rule((), (), (condition,))]
    if isinstance(condition, Or):
        return [rule for part in condition.parts for rule in split_condition(part)]
    if isinstance(condition, Exists):
        return [
            Rule(condition.variables + rule.variables, rule.literals, rule.universals)
            for rule in split_condition(condition.part)
        ]
    rules = [Rule((), (), ())]
    for part in condition.parts:
        rules = [
            Rule(
                left.variables + right.variables,
                left.literals + right.literals,
                left.universals + right.universals,
            )
            for left in rules
            for right in split_condition(part)
        ]
        if len(rules) > MAX_RULES:
            raise PddlError(f"a condition has more than {MAX_RULES} alternatives")
    return rules


def condition_literals(condition: Condition) -> Iterator[Literal]:
    """All literals in `condition`, wherever they stand."""
    if isinstance(condition, Literal):
        yield condition
    elif isinstance(condition, Exists | Forall):
        yield from condition_literals(condition.part)
    else:
        for part in condition.parts:
            yield from condition_literals(part)


def rule_literals(rule: Rule) -> Iterator[Literal]:
    """All literals of `rule`, those under its universals included."""
    yield from rule.literals
    for universal in rule.universals:
        yield from condition_literals(universal)


def _parse_effects(
    expression: Expression, variables: tuple[TypedName, ...] = (), condition: Condition = ALWAYS
) -> Iterator[Effect]:
    items = as_list(expression)
    tag = items[0] if items else "and"
    if tag == "and":
        for part in items[1:]:
            yield from _parse_effects(part, variables, condition)
    elif tag == "forall" and len(items) == 3:
        yield from _parse_effects(items[2], variables + tuple(parse_typed_names(items[1])), condition)
    elif tag == "when" and len(items) == 3:
        yield from _parse_effects(items[2], variables, And((condition, parse_condition(items[1]))))
    elif tag != "increase":
        literal = parse_condition(items)
        if not isinstance(literal, Literal):
            raise PddlError(f"an effect is not a literal: {items}")
        yield Effect(variables, condition, literal)


def _parse_action(items: list[Expression]) -> ActionSchema:
    if not items or not isinstance(items[0], str) or len(items) % 2 == 0:
        raise PddlError("an action is malformed")
    name, rest = items[0], items[1:]
    fields: dict[str, Expression] = {str(rest[i]): rest[i + 1] for i in range(0, len(rest), 2)}
    parameters = tuple(parse_typed_names(fields.get(":parameters", [])))
    rules = split_condition(parse_condition(fields.get(":precondition", [])))
    rules = [Rule(parameters + rule.variables, rule.literals, rule.universals) for rule in rules]
    effects = tuple(_parse_effects(fields.get(":effect", [])))
    return ActionSchema(name, parameters, tuple(rules), effects)


def _supertypes(declared: Iterable[TypedName]) -> dict[str, frozenset[str]]:
    parent = dict(declared)
    closed: dict[str, frozenset[str]] = {}
    for name in parent:
        ancestors: set[str] = set()
        above = parent.get(name)
        while above is not None and above not in ancestors and above != name:
            ancestors.add(above)
            above = parent.get(above)
        closed[name] = frozenset(ancestors)
    return closed


def parse_domain(text: str) -> Domain:
    """Read a domain file.

    Raises:
        PddlError: the text is malformed, uses a predicate wrongly, or has derived predicates or constants.
    """
    types: list[TypedName] = []
    arities = {"=": 2}
    schemas: dict[str, ActionSchema] = {}
    for tag, rest in sections(parse_expression(text), "domain"):
        if tag == ":types":
            types = parse_typed_names(rest)
        elif tag == ":predicates":
            declared = [as_words(predicate) for predicate in rest]
            arities |= {words[0]: len(parse_typed_names(list(words[1:]))) for words in declared if words}
        elif tag == ":action":
            schema = _parse_action(rest)
            schemas[schema.name] = schema
        elif tag in (":derived", ":constants"):
            raise PddlError(f"{tag} is not supported in a domain")
    if not schemas:
        raise PddlError("the domain has no actions")
    fluents = frozenset(effect.literal.predicate for schema in schemas.values() for effect in schema.effects)
    domain = Domain(schemas, _supertypes(types), arities, fluents)
    for schema in schemas.values():
        for literal in [*schema_conditions(schema), *(effect.literal for effect in schema.effects)]:
            domain.check_use(literal.predicate, len(literal.args))
    return domain


def schema_conditions(schema: ActionSchema) -> Iterator[Literal]:
    """All literals that decide whether the action applies, and what it does."""
    for rule in schema.rules:
        yield from rule_literals(rule)
    for effect in schema.effects:
        yield from condition_literals(effect.condition)

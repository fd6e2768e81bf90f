"""PDDL text to condition trees: the part of the language that the ALFRED domain and its problems use."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Expression: TypeAlias = "str | list[Expression]"
TypedName: TypeAlias = tuple[str, str]

MAX_DEPTH = 100
_TOKEN = re.compile(r"[()]|[^\s()]+")


class PddlError(ValueError):
    """The text is not a PDDL domain or problem that can be read."""


@dataclass(frozen=True, slots=True)
class Literal:
    """`predicate(args)` or its negation; arguments that begin with `?` are variables."""

    predicate: str
    args: tuple[str, ...]
    positive: bool = True


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    variables: tuple[TypedName, ...]
    part: Condition


@dataclass(frozen=True, slots=True)
class Forall:
    variables: tuple[TypedName, ...]
    part: Condition


Condition: TypeAlias = Literal | And | Or | Exists | Forall


@dataclass(frozen=True, slots=True)
class Problem:
    """A parsed problem: names in lower case, `objects` maps each to its type."""

    name: str
    objects: dict[str, str]
    facts: frozenset[tuple[str, ...]]
    goal: Condition


def parse_expression(text: str) -> list[Expression]:
    """Read one parenthesised expression, lower-cased and without comments.

    Raises:
        PddlError: the parentheses do not match, or the text holds anything else.
    """
    lines = (line.partition(";")[0] for line in text.split("\n"))
    code = " ".join(lines).replace("?", " ?").lower()
    if not code.isascii():
        raise PddlError("characters outside ASCII in PDDL text")
    tokens = _TOKEN.findall(code)
    if not tokens or tokens[0] != "(":
        raise PddlError("PDDL text does not begin with '('")
    root: list[Expression] = []
    stack = [root]
    for position, token in enumerate(tokens):
        if token == "(":
            inner: list[Expression] = []
            stack[-1].append(inner)
            stack.append(inner)
            if len(stack) > MAX_DEPTH:
                raise PddlError(f"more than {MAX_DEPTH} parentheses inside one another")
        elif token == ")":
            stack.pop()
            if len(stack) == 1 and position + 1 < len(tokens):
                raise PddlError("PDDL text goes on after its last ')'")
        else:
            stack[-1].append(sys.intern(token))
    if len(stack) != 1:
        raise PddlError("PDDL text ends before its last ')'")
    return as_list(root[0])


def as_list(expression: Expression) -> list[Expression]:
    """`expression` itself if it is a list.

    Raises:
        PddlError: it is a bare word.
    """
    if isinstance(expression, str):
        raise PddlError(f"expected a list, found {expression!r}")
    return expression


def as_words(expression: Expression) -> list[str]:
    """`expression` itself if it is a list of words.

    Raises:
        PddlError: it is a bare word, or holds another list.
    """
    words = [word for word in as_list(expression) if isinstance(word, str)]
    if len(words) != len(expression):
        raise PddlError(f"expected words only in {expression}")
    return words


def parse_typed_names(expression: Expression) -> list[TypedName]:
    """Read `a b - type c`; names without a type are of type `object`.

    The word after the dash is the type whatever it looks like: `?l - location, ?r - receptacle` declares
    a variable of the type `location,`, which no object has. The original reads it so too, and it is why
    objects in receptacles cannot be examined.
    """
    words = as_words(expression)
    names: list[TypedName] = []
    pending: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word != "-":
            pending.append(word)
            continue
        type_name = next(remaining, None)
        if type_name is None:
            raise PddlError("a list of typed names ends in '-'")
        names.extend((name, type_name) for name in pending)
        pending.clear()
    names.extend((name, "object") for name in pending)
    return names


def parse_condition(expression: Expression) -> Condition:
    """Read a condition into negation normal form; quantified variables get names of their own.

    An empty list is the condition that always holds.

    Raises:
        PddlError: the condition is malformed.
    """
    return _normal_form(expression, False, {}, itertools.count(1))


def _normal_form(
    expression: Expression, negated: bool, renamed: dict[str, str], fresh: Iterator[int]
) -> Condition:
    items = as_list(expression)
    if not items:
        return Or(()) if negated else And(())
    tag = items[0]
    if tag == "not" and len(items) == 2:
        return _normal_form(items[1], not negated, renamed, fresh)
    if tag in ("and", "or"):
        parts = tuple(_normal_form(part, negated, renamed, fresh) for part in items[1:])
        return And(parts) if (tag == "and") != negated else Or(parts)
    if tag == "imply" and len(items) == 3:
        premise = _normal_form(items[1], not negated, renamed, fresh)
        conclusion = _normal_form(items[2], negated, renamed, fresh)
        return And((premise, conclusion)) if negated else Or((premise, conclusion))
    if tag in ("exists", "forall") and len(items) == 3:
        variables = parse_typed_names(items[1])
        inner = renamed | {name: f"{name}#{next(fresh)}" for name, _ in variables}
        typed = tuple((inner[name], type_name) for name, type_name in variables)
        part = _normal_form(items[2], negated, inner, fresh)
        return Exists(typed, part) if (tag == "exists") != negated else Forall(typed, part)
    if tag in ("not", "imply", "exists", "forall"):
        raise PddlError(f"{tag!r} has the wrong number of parts: {items}")
    words = as_words(items)
    return Literal(words[0], tuple(renamed.get(word, word) for word in words[1:]), not negated)


def sections(expression: Expression, kind: str) -> Iterator[tuple[str, list[Expression]]]:
    """The sections `(:tag ...)` of a `(define (kind name) ...)`, as (tag, rest); `kind` itself first.

    Raises:
        PddlError: `expression` does not define a `kind`.
    """
    items = as_list(expression)
    if len(items) < 2 or items[0] != "define" or as_words(items[1])[:1] != [kind]:
        raise PddlError(f"not a PDDL {kind}")
    for item in items[1:]:
        section = as_list(item)
        if not section or not isinstance(section[0], str):
            raise PddlError(f"a section of the {kind} has no name")
        yield section[0], section[1:]


def parse_problem(text: str) -> Problem:
    """Read a problem file.

    Numeric facts and negated facts are left out: neither is needed to play.

    Raises:
        PddlError: the text is malformed, names an object twice, or lacks its objects, facts or goal.
    """
    found = dict(sections(parse_expression(text), "problem"))
    missing = [tag for tag in ("problem", ":objects", ":init", ":goal") if not found.get(tag)]
    if missing:
        raise PddlError(f"the problem lacks {', '.join(missing)}")
    typed = parse_typed_names(found[":objects"])
    objects = dict(typed)
    if len(objects) != len(typed):
        raise PddlError("the problem declares an object twice")
    facts = []
    for entry in found[":init"]:
        if not as_list(entry):
            raise PddlError("a fact is empty")
        if as_list(entry)[:1] not in (["="], ["not"]):
            facts.append(tuple(as_words(entry)))
    for fact in facts:
        for name in fact[1:]:
            if name not in objects:
                raise PddlError(f"the fact {fact[0]} names {name!r}, which is not declared")
    goal = parse_condition(found[":goal"][0])
    return Problem(as_words(found["problem"])[0], objects, frozenset(facts), goal)

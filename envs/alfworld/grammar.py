"""The text grammar of a game (`alfred.twl2`): command templates, feedback, and texts for `#symbols#`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from envs.alfworld.text_syntax import (
    ForEach,
    GrammarError,
    Listing,
    Query,
    Symbol,
    parse_query,
    parse_text,
)


@dataclass(frozen=True, slots=True)
class Production:
    """One text for a symbol; it counts only if `condition` has a match (an empty one always has)."""

    condition: Query
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class ActionText:
    """How an action is written and what it answers."""

    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Texts of actions by lower-case name, productions by symbol."""

    actions: dict[str, ActionText]
    productions: dict[str, tuple[Production, ...]]


def grammar_predicates(grammar: Grammar) -> set[str]:
    """The predicates that texts depend on, `not_...` ones included."""
    found: set[str] = set()
    for text in grammar.actions.values():
        found |= _queried((*text.template, *text.feedback))
    for productions in grammar.productions.values():
        for production in productions:
            found |= {atom.predicate for atom in production.condition} | _queried(production.symbols)
    return found


def _queried(symbols: tuple[Symbol, ...]) -> set[str]:
    items = [symbol.items if isinstance(symbol, Listing) else symbol for symbol in symbols]
    return {atom.predicate for symbol in items if isinstance(symbol, ForEach) for atom in symbol.query}


_TWL2_TOKEN = re.compile(r'(?:\s|#[^\n]*(?:\n|$))*("""(?:.|\n)*?"""|"[^"]*"|::|[;{}]|[\w/-]+)')


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TWL2_TOKEN.match(text, at)
        if match is None:
            raise GrammarError(f"cannot read the grammar at {text[at : at + 40]!r}")
        tokens.append(match[1])
        at = match.end()
    return tokens


def _rules(block: str, with_comments: bool) -> dict[str, Any]:
    body = textwrap.dedent(block[3:-3])
    if with_comments:
        body = "\n".join(line for line in body.split("\n") if not line.lstrip().startswith("#"))
    try:
        rules = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"a block of the grammar is not JSON: {error}") from error
    if not isinstance(rules, dict):
        raise GrammarError("a block of the grammar is not a JSON object")
    return rules


def _production(rule: Any) -> Production:
    if not isinstance(rule, dict) or not isinstance(rule.get("rhs"), str):
        raise GrammarError("a rule of the grammar has no text")
    condition = rule.get("condition", "")
    return Production(parse_query(condition) if condition else (), parse_text(rule["rhs"]))


def parse_grammar(text: str) -> Grammar:
    """Read a `.twl2` file.

    Raises:
        GrammarError: the text is malformed or uses an expression that is not supported.
    """
    tokens = iter(_tokens(text))
    actions: dict[str, ActionText] = {}
    rules: dict[str, Any] = {}
    for token in tokens:
        if token == "grammar":
            rules |= _rules(_field(tokens), with_comments=False)
        elif token == "action":
            name = next(tokens, "").lower()
            fields = _action_fields(tokens, name)
            actions[name] = ActionText(
                parse_text(fields["template"][1:-1]), parse_text(fields["feedback"][1:-1])
            )
            if "grammar" in fields:
                rules |= _rules(fields["grammar"], with_comments=True)
        else:
            raise GrammarError(f"the grammar has {token!r} where an action or a grammar should begin")
    productions = {symbol: tuple(_production(rule) for rule in listed) for symbol, listed in rules.items()}
    return Grammar(actions, productions)


def _field(tokens: Iterator[str]) -> str:
    double_colon, value, semicolon = next(tokens, ""), next(tokens, ""), next(tokens, "")
    if (double_colon, semicolon) != ("::", ";"):
        raise GrammarError(f"a field of the grammar is malformed near {value[:40]!r}")
    return value


def _action_fields(tokens: Iterator[str], action: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    if next(tokens, "") == "{":
        for key in tokens:
            if key == "}":
                if not {"template", "feedback"} <= fields.keys():
                    break
                return fields
            fields[key] = _field(tokens)
    raise GrammarError(f"the action {action!r} of the grammar is malformed")

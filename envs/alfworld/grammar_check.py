"""Whether a grammar can write every text that a game of a domain may ask for, found out before one is played.

Stricter than the original, which finds out when it comes to such a text: every symbol needs a rule without a
condition, and no text may lead back to itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from envs.alfworld.domain import Domain
from envs.alfworld.grammar import Grammar
from envs.alfworld.text_syntax import (
    Entity,
    ForEach,
    GrammarError,
    Listing,
    Query,
    Reference,
    Symbol,
    Text,
    Value,
)

Names = frozenset[str]
OPENING = "intro"


def check_texts(grammar: Grammar, domain: Domain) -> None:
    """Follow every text from the opening and from each action's command and answer.

    Raises:
        GrammarError: a text is missing, leads back to itself, or asks for a variable that is not there.
        PddlError: a condition asks for a predicate that is not declared, or with other arguments.
    """
    missing = domain.schemas.keys() - grammar.actions.keys()
    if missing:
        raise GrammarError(f"the grammar has no text for the actions {sorted(missing)}")
    check = _Check(grammar, domain)
    check.reference(OPENING, frozenset())
    for name, schema in domain.schemas.items():
        names = frozenset(parameter.removeprefix("?") for parameter, _ in schema.parameters)
        text = grammar.actions[name]
        check.symbols((*text.template, *text.feedback), names)


class _Check:
    def __init__(self, grammar: Grammar, domain: Domain) -> None:
        self._grammar = grammar
        self._domain = domain
        self._open: set[str] = set()
        self._checked: set[tuple[str, Names]] = set()

    def symbols(self, symbols: tuple[Symbol, ...], names: Names) -> None:
        for symbol in symbols:
            self._symbol(symbol, names)

    def reference(self, symbol: str, names: Names) -> None:
        if symbol in self._open:
            raise GrammarError(f"the grammar's text for #{symbol}# leads back to itself")
        if (symbol, names) in self._checked:
            return
        self._open.add(symbol)
        unconditional = False
        for production in self._grammar.productions.get(symbol, ()):
            self._query(production.condition)
            self.symbols(production.symbols, names)
            unconditional = unconditional or not production.condition
        if not unconditional:
            raise GrammarError(f"the grammar has no text for #{symbol}# that is always there")
        self._open.remove(symbol)
        self._checked.add((symbol, names))

    def _symbol(self, symbol: Symbol, names: Names) -> None:
        if isinstance(symbol, Value):
            _check_value(symbol, names)
        elif isinstance(symbol, Reference):
            self.reference(symbol.symbol, names)
        elif isinstance(symbol, Listing):
            for separator in ("list_empty", "list_separator", "list_last_separator"):
                self.reference(separator, names)
            self._symbol(symbol.items, names)
        elif isinstance(symbol, ForEach):
            self._query(symbol.query)
            self._symbol(symbol.content, names | frozenset(_names(symbol.query)))
        else:
            assert isinstance(symbol, Text)

    def _query(self, query: Query) -> None:
        for atom in query:
            self._domain.check_use(atom.predicate.removeprefix("not_"), len(atom.placeholders))


def _names(query: Query) -> Iterator[str]:
    return (placeholder.name for atom in query for placeholder in atom.placeholders)


def _check_value(value: Value, names: Names) -> None:
    unknown = value.names - names
    if unknown:
        raise GrammarError(f"the grammar uses {sorted(unknown)} where it is unknown")
    # `or` looks at what stands behind it only where what stands before is empty
    for text in ("", "a"):
        try:
            value.evaluator(dict.fromkeys(names, Entity(text, text, text, text, text)))
        except (TypeError, AttributeError) as error:
            raise GrammarError(f"the grammar holds a value that cannot be written: {error}") from error

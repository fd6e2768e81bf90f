"""The small language of game texts: `{values}`, `#references#`, and lists of what a query finds."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias


class GrammarError(ValueError):
    """The text is not a grammar that can be read."""


@dataclass(frozen=True, slots=True)
class Entity:
    """What a text may say about an object of the game."""

    id: str
    name: str
    type: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


class Placeholder(NamedTuple):
    """A variable of a query; the same name with another type is another variable."""

    name: str
    type: str


class QueryAtom(NamedTuple):
    """`predicate(placeholders)`; negated ones look for a predicate named `not_...`."""

    predicate: str
    placeholders: tuple[Placeholder, ...]


Query: TypeAlias = tuple[QueryAtom, ...]
Evaluator: TypeAlias = Callable[[Mapping[str, Entity]], Any]


@dataclass(frozen=True, slots=True)
class Text:
    """Text as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class Reference:
    """`#symbol#`: the text of the first rule for `symbol` whose condition holds."""

    symbol: str


@dataclass(frozen=True, slots=True)
class Value:
    """`{expression}`: a value of an entity in scope."""

    names: frozenset[str]
    evaluator: Evaluator


@dataclass(frozen=True, slots=True)
class ForEach:
    """`{content | query}`: the content once for every match of the query, in the facts' order."""

    content: Value | Reference
    query: Query


@dataclass(frozen=True, slots=True)
class Listing:
    """`[{content | query}]`: the same, set out as a list."""

    items: ForEach | Value | Reference


Symbol: TypeAlias = Text | Reference | Value | ForEach | Listing


_LINE_START_SPACE = re.compile(r"^(?://.*|\s*)\n?", re.MULTILINE)
_TABS = re.compile(r"[\t]+")
_LITERAL = re.compile(r'[^;|"<>\[\]#{}]*')
_TAG = re.compile(r"[\w()/!<>\-\s,.]+")
_STATEMENT = re.compile(r"[^|\[\]{}\n<>]+")
_GIVEN = re.compile(r"[^;|{}\n\[\]#]+")
_BAR = re.compile(r"\s*\|\s*")


class _TextReader:
    """Reads one text of the grammar from left to right, and stops where the original would.

    White space at the beginning of a line is lost where a symbol begins there: this is why the answer to
    `help` does not begin with the newline that the grammar gives it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def symbols(self) -> tuple[Symbol, ...]:
        found: list[Symbol] = []
        while True:
            before = self.at
            self._skip()
            symbol = self._listing() or self._braced() or self._reference() or self._plain()
            if symbol is None or (self.at == before and found):
                return tuple(found)
            found.append(symbol)
            if self.at == before:
                return tuple(found)

    def _skip(self) -> None:
        while True:
            before = self.at
            for pattern in (_LINE_START_SPACE, _TABS):
                match = pattern.match(self.text, self.at)
                self.at = match.end() if match else self.at
            if self.at == before:
                return

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match.group()

    def _token(self, token: str) -> bool:
        self._skip()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _listing(self) -> Symbol | None:
        start = self.at
        if self._token("["):
            items = self._braced()
            if items is not None and self._token("]"):
                return Listing(items)
        self.at = start
        return None

    def _braced(self) -> ForEach | Value | Reference | None:
        start = self.at
        if self._token("{"):
            content = self._reference() or self._value()
            if content is not None:
                bar = self.at
                query: Query = ()
                if self._take(_BAR) is not None:
                    self._skip()
                    given = self._take(_GIVEN)
                    if given is None:
                        self.at = bar
                    else:
                        query = parse_query(given)
                if self._token("}"):
                    return ForEach(content, query) if query else content
        self.at = start
        return None

    def _reference(self) -> Reference | None:
        start = self.at
        if self._token("#"):
            self._skip()
            tag = self._take(_TAG)
            if tag is not None and self._token("#"):
                return Reference(tag)
        self.at = start
        return None

    def _value(self) -> Value | None:
        self._skip()
        statement = self._take(_STATEMENT)
        return None if statement is None else compile_value(statement)

    def _plain(self) -> Text | None:
        start = self.at
        if self._token('"'):
            text = self._take(_LITERAL)
            if self._token('"'):
                return Text(text or "")
            self.at = start
        return Text(self._take(_LITERAL) or "")


def compile_value(statement: str) -> Value:
    """Compile an expression over entities: names, attributes, string constants, `+` and `or`.

    Raises:
        GrammarError: the expression uses anything else.
    """
    try:
        tree = ast.parse(statement.strip(), mode="eval").body
    except SyntaxError as error:
        raise GrammarError(f"the grammar holds {{{statement}}}, which is not an expression") from error
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Value(names, _compile_node(tree, statement))


def _compile_node(node: ast.expr, statement: str) -> Evaluator:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        constant = node.value
        return lambda scope: constant
    if isinstance(node, ast.Name):
        name = node.id
        return lambda scope: scope[name]
    if isinstance(node, ast.Attribute) and node.attr in Entity.__dataclass_fields__:
        owner, attribute = _compile_node(node.value, statement), node.attr
        return lambda scope: getattr(owner(scope), attribute)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _compile_node(node.left, statement), _compile_node(node.right, statement)
        return lambda scope: left(scope) + right(scope)
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        options = [_compile_node(option, statement) for option in node.values]

        def first_true(scope: Mapping[str, Entity]) -> Any:
            result = None
            for option in options:
                result = option(scope)
                if result:
                    break
            return result

        return first_true
    raise GrammarError(f"the grammar holds {{{statement}}}, which is not supported")


_QUERY_ATOM = re.compile(r"\s*(!?[\w/]+)\s*\(([^()]*)\)\s*")
_PLACEHOLDER = re.compile(r"\s*([\w']+)\s*(?::\s*([\w/-]+)\s*)?")


@lru_cache(maxsize=256)
def parse_query(text: str) -> Query:
    """Read `p(x:type) & q(x:type, y:type)`; a placeholder without a type has its name as type.

    Raises:
        GrammarError: the text is malformed, or gives a placeholder two types.
    """
    atoms: list[QueryAtom] = []
    types: dict[str, str] = {}
    for part in text.split("&"):
        match = _QUERY_ATOM.fullmatch(part)
        if match is None:
            raise GrammarError(f"cannot read the condition {text!r}")
        placeholders: list[Placeholder] = []
        for argument in match[2].split(",") if match[2].strip() else []:
            typed = _PLACEHOLDER.fullmatch(argument)
            if typed is None:
                raise GrammarError(f"cannot read the condition {text!r}")
            name, type_name = typed[1], typed[2] or typed[1]
            if types.setdefault(name, type_name) != type_name:
                raise GrammarError(f"{name} has two types in the condition {text!r}")
            placeholders.append(Placeholder(name, type_name))
        predicate = match[1].lstrip("!")
        if match[1].startswith("!"):
            predicate = predicate.removeprefix("not_") if predicate.startswith("not_") else f"not_{predicate}"
        atoms.append(QueryAtom(predicate, tuple(placeholders)))
    return tuple(atoms)


def parse_text(text: str) -> tuple[Symbol, ...]:
    """Read the right-hand side of a production, a command template or a feedback."""
    return _TextReader(text).symbols()

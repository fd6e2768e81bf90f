"""Write a game's texts: commands, feedback and the opening, from the grammar and the facts that hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envs.alfworld.facts import EVERYWHERE, Fact, Facts
from envs.alfworld.grammar import Grammar
from envs.alfworld.matching import World
from envs.alfworld.text_syntax import (
    Entity,
    ForEach,
    GrammarError,
    Listing,
    Placeholder,
    Query,
    QueryAtom,
    Reference,
    Symbol,
    Text,
    Value,
)


@dataclass(slots=True)
class Scope:
    """What a text can refer to: entities by name, and object ids by placeholder."""

    ids: dict[Placeholder, str]
    entities: dict[str, Entity]


@dataclass(frozen=True, slots=True)
class TextWriter:
    """Writes texts of one game, whose `grammar` has passed `envs.alfworld.grammar_check.check_texts`.

    `fluents` are the predicates to look up among the facts that change, `types` the objects' types;
    `signatures` remembers in which order facts of different types are gone through.
    """

    grammar: Grammar
    world: World
    entities: Mapping[str, Entity]
    types: Mapping[str, str]
    fluents: frozenset[str]
    signatures: dict[tuple[str, ...], dict[tuple[str, ...], int]] = field(default_factory=dict)

    def scope(self, ids: dict[Placeholder, str]) -> Scope:
        return Scope(ids, {placeholder.name: self.entities[value] for placeholder, value in ids.items()})

    def write(self, symbols: tuple[Symbol, ...], scope: Scope, facts: Facts) -> str:
        """The text of `symbols`, with `scope` for their variables.

        Raises:
            GrammarError: a symbol has no production whose condition holds, which `check_texts` rules out.
        """
        return "".join(
            [
                symbol.text if isinstance(symbol, Text) else self._symbol(symbol, scope, facts)
                for symbol in symbols
            ]
        )

    def _symbol(self, symbol: Symbol, scope: Scope, facts: Facts) -> str:
        if isinstance(symbol, Value):
            return str(symbol.evaluator(scope.entities))
        if isinstance(symbol, Reference):
            return self._reference(symbol.symbol, scope, facts)
        if isinstance(symbol, Listing):
            return self._listing(symbol, scope, facts)
        if isinstance(symbol, ForEach):
            return "".join(self._items(symbol, scope, facts))
        return symbol.text

    def _reference(self, symbol: str, scope: Scope, facts: Facts) -> str:
        for production in self.grammar.productions.get(symbol, ()):
            if not production.condition or self.has_match(production.condition, scope.ids, facts):
                return self.write(production.symbols, scope, facts)
        raise GrammarError(f"the grammar has no text for #{symbol}#")

    def _items(self, symbol: ForEach, scope: Scope, facts: Facts) -> list[str]:
        texts = []
        entities = scope.entities.copy()
        for ids in self.matches(symbol.query, scope.ids, facts):
            for atom in symbol.query:
                for placeholder in atom.placeholders:
                    entities[placeholder.name] = self.entities[ids[placeholder]]
            if isinstance(symbol.content, Value):
                texts.append(str(symbol.content.evaluator(entities)))
            else:
                texts.append(self._reference(symbol.content.symbol, Scope(ids, entities), facts))
        return texts

    def _listing(self, symbol: Listing, scope: Scope, facts: Facts) -> str:
        if isinstance(symbol.items, ForEach):
            items = self._items(symbol.items, scope, facts)
        else:
            items = [self._symbol(symbol.items, scope, facts)]
        if not items:
            return self._reference("list_empty", scope, facts)
        if len(items) == 1:
            return items[0]
        separator = self._reference("list_separator", scope, facts)
        return separator.join(items[:-1]) + self._reference("list_last_separator", scope, facts) + items[-1]

    def has_match(self, query: Query, ids: dict[Placeholder, str], facts: Facts) -> bool:
        return bool(self.matches(query, ids, facts))

    def matches(
        self, query: Query, ids: dict[Placeholder, str], facts: Facts
    ) -> list[dict[Placeholder, str]]:
        """Every extension of `ids` that makes all atoms of `query` facts, in sorted order.

        Different placeholders stand for different objects.
        """
        found: list[dict[Placeholder, str]] = []
        self._extend(query, 0, ids, facts, found)
        return found

    def _extend(
        self,
        query: Query,
        depth: int,
        ids: dict[Placeholder, str],
        facts: Facts,
        found: list[dict[Placeholder, str]],
    ) -> None:
        for atom in query[depth:]:
            source = facts if atom.predicate in self.fluents else self.world.static
            values = [ids.get(placeholder, "") for placeholder in atom.placeholders]
            depth += 1
            if "" in values:
                break
            if (atom.predicate, *values) not in source.present:
                return
        else:
            found.append(ids)
            return
        position, value = next(((at, value) for at, value in enumerate(values, 1) if value), (EVERYWHERE, ""))
        for fact in self._in_type_order(atom, source.matching(atom.predicate, position, value)):
            extended = _bind(atom, fact, ids)
            if extended is None:
                continue
            if depth == len(query):
                found.append(extended)
            else:
                self._extend(query, depth, extended, facts, found)

    def _in_type_order(self, atom: QueryAtom, candidates: tuple[Fact, ...]) -> tuple[Fact, ...]:
        """`candidates` of the declared types first, then those of subtypes; others are left out."""
        if not candidates:
            return candidates
        declared = tuple([placeholder.type for placeholder in atom.placeholders])
        ranks = self.signatures.get(declared)
        if ranks is None:
            ranks = self.signatures[declared] = self._signature_ranks(declared)
        type_of = self.types.__getitem__
        ranked = [ranks.get(tuple(map(type_of, fact[1:]))) for fact in candidates]
        if not any(ranked) and None not in ranked:
            return candidates
        kept = [(rank, fact) for rank, fact in zip(ranked, candidates, strict=True) if rank is not None]
        return tuple(fact for _, fact in sorted(kept))

    def _signature_ranks(self, declared: tuple[str, ...]) -> dict[tuple[str, ...], int]:
        supertypes = self.world.domain.supertypes
        ranks = {declared: 0}
        queue = [declared]
        for types in queue:
            for at, type_name in enumerate(types):
                for subtype in sorted(name for name in supertypes if type_name in supertypes[name]):
                    expanded = (*types[:at], subtype, *types[at + 1 :])
                    if expanded not in ranks:
                        ranks[expanded] = len(ranks)
                        queue.append(expanded)
        return ranks


def _bind(atom: QueryAtom, fact: Fact, ids: dict[Placeholder, str]) -> dict[Placeholder, str] | None:
    """`ids` with the arguments of `fact` for the placeholders of `atom`; None where they do not fit."""
    extended = ids.copy()
    for placeholder, value in zip(atom.placeholders, fact[1:], strict=True):
        current = extended.get(placeholder)
        if current is None:
            if value in extended.values():
                return None
            extended[placeholder] = value
        elif current != value:
            return None
    return extended

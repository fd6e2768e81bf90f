"""A set of facts with sorted indexes, cheap to copy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Fact: TypeAlias = tuple[str, ...]
"""A predicate's name and its arguments: ("inreceptacle", "mug_1", "desk_1")."""

IndexKey: TypeAlias = tuple[str, int, str]

EVERYWHERE = 0
"""The index position of "all facts of a predicate"; position i is the predicate's i-th argument, from 1."""


class Facts:
    """Facts that hold; every indexed list is an immutable sorted tuple, so that copies share them."""

    __slots__ = ("present", "index", "positions")

    def __init__(self, facts: Iterable[Fact], positions: dict[str, tuple[int, ...]]) -> None:
        """Index `facts`; `positions` says by which arguments each predicate is indexed."""
        self.positions = positions
        self.present: set[Fact] = set(facts)
        lists: dict[IndexKey, list[Fact]] = {}
        for fact in sorted(self.present):
            for key in self._keys(fact):
                lists.setdefault(key, []).append(fact)
        self.index: dict[IndexKey, tuple[Fact, ...]] = {key: tuple(found) for key, found in lists.items()}

    def _keys(self, fact: Fact) -> Iterator[IndexKey]:
        yield fact[0], EVERYWHERE, ""
        for position in self.positions.get(fact[0], ()):
            yield fact[0], position, fact[position]

    def copy(self) -> Facts:
        copied = Facts.__new__(Facts)
        copied.positions = self.positions
        copied.present = self.present.copy()
        copied.index = self.index.copy()
        return copied

    def add(self, fact: Fact) -> bool:
        """Make `fact` true; whether it was false before."""
        if fact in self.present:
            return False
        self.present.add(fact)
        for key in self._keys(fact):
            listed = self.index.get(key, ())
            at = bisect_left(listed, fact)
            self.index[key] = (*listed[:at], fact, *listed[at:])
        return True

    def discard(self, fact: Fact) -> bool:
        """Make `fact` false; whether it was true before."""
        if fact not in self.present:
            return False
        self.present.discard(fact)
        for key in self._keys(fact):
            self.index[key] = tuple(other for other in self.index[key] if other != fact)
        return True

    def matching(self, predicate: str, position: int = EVERYWHERE, value: str = "") -> tuple[Fact, ...]:
        """The sorted facts of `predicate`, or those whose argument at `position` (from 1) is `value`."""
        return self.index.get((predicate, position, value), ())

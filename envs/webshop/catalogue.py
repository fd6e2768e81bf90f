"""The products of a shop, by number and by asin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from envs.webshop.nouns import TitleNouns
from envs.webshop.products import MAX_ASIN_LENGTH, MalformedRecordError, Product, read_product
from envs.webshop.reward import TitledProduct


@dataclass(frozen=True, slots=True)
class LoadReport:
    """``malformed``: one sentence for each record that could not be used. ``num_left_out``: records that the
    original leaves out too (no asin, too long a one, or one seen before)."""

    malformed: tuple[str, ...] = ()
    num_left_out: int = 0


class Catalogue(Protocol):
    """Products 0 to N - 1. ``fingerprint`` changes with any of them."""

    fingerprint: str
    noun_source: str
    report: LoadReport

    def __len__(self) -> int: ...

    def titled(self, number: int) -> TitledProduct:
        """A product and its title nouns."""
        ...

    def number_of(self, asin: str) -> int:
        """The number of a product; raises KeyError for an unknown asin."""
        ...

    def pricings(self) -> Iterable[tuple[float, ...]]:
        """What each product costs, in the order of their numbers."""
        ...

    def with_instruction(self, human: bool) -> Iterator[tuple[int, Product]]:
        """The products that goals are made of, in the order of their numbers."""
        ...


@dataclass(slots=True)
class ProductReader:
    """Reads product records one after the other and keeps account of those it cannot use."""

    annotations: Mapping[str, Any]
    human: Mapping[str, Any]
    malformed: list[str] = field(default_factory=list)
    num_left_out: int = 0
    _seen: set[str] = field(default_factory=set)

    def read(self, records: Iterable[Any]) -> Iterator[Product]:
        """The products among ``records``."""
        for index, record in enumerate(records):
            asin = record.get("asin") if isinstance(record, Mapping) else None
            if isinstance(asin, str) and (asin == "nan" or len(asin) > MAX_ASIN_LENGTH or asin in self._seen):
                self.num_left_out += 1
                continue
            try:
                product = read_product(record, self.annotations, self.human)
            except MalformedRecordError as error:
                self.malformed.append(
                    f"product {index} ({asin if isinstance(asin, str) else 'no asin'}): {error}"
                )
                continue
            self._seen.add(product.asin)
            yield product

    @property
    def report(self) -> LoadReport:
        return LoadReport(tuple(self.malformed), self.num_left_out)


class InMemoryCatalogue:
    """A catalogue small enough to keep as objects, shared by all episodes of a process."""

    def __init__(self, products: Iterable[Product], nouns: TitleNouns, report: LoadReport | None = None):
        self._titled = [TitledProduct(p, nouns.of(p.asin, p.title)) for p in products]
        self._numbers = {titled.product.asin: number for number, titled in enumerate(self._titled)}
        if len(self._numbers) != len(self._titled):
            raise ValueError("two products of a catalogue have the same asin")
        self.noun_source = nouns.source
        self.report = report or LoadReport()
        digest = hashlib.sha256()
        for titled in self._titled:
            digest.update(json.dumps(asdict(titled)).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._titled)

    def titled(self, number: int) -> TitledProduct:
        return self._titled[number]

    def number_of(self, asin: str) -> int:
        return self._numbers[asin]

    def pricings(self) -> Iterable[tuple[float, ...]]:
        return (titled.product.pricing for titled in self._titled)

    def with_instruction(self, human: bool) -> Iterator[tuple[int, Product]]:
        for number, titled in enumerate(self._titled):
            if titled.product.human_instructions if human else titled.product.instruction is not None:
                yield number, titled.product

"""A shop: catalogue, prices and search engine, shared by all episodes of a process."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache

from envs.webshop.catalogue import Catalogue
from envs.webshop.goals import Goal, GoalList, human_goals, sampled_prices, synthetic_goals
from envs.webshop.index_build import build_index
from envs.webshop.products import Product
from envs.webshop.reward import Score, score_purchase
from envs.webshop.search import SearchIndex

PRICE_SEED = 0

_CACHED_SEARCHES = 1024


class Shop:
    """Nothing in a shop changes once it is open, so any number of episodes may use it at the same time.

    ``prices`` [N] in dollars, one for each product. ``stream`` is the one the prices were drawn from: goals
    draw their limits from what follows.
    """

    def __init__(
        self, catalogue: Catalogue, index: SearchIndex, prices: Sequence[float], stream: random.Random
    ):
        if not len(catalogue) == index.num_documents == len(prices):
            raise ValueError(
                f"{len(catalogue)} products, {index.num_documents} in the search index, {len(prices)} prices"
            )
        self.catalogue = catalogue
        self.prices = prices
        self._after_prices = stream.getstate()
        self.index = index
        self._search = lru_cache(maxsize=_CACHED_SEARCHES)(self._search_index)

    @classmethod
    def open(
        cls, catalogue: Catalogue, index: SearchIndex | None = None, price_seed: int = PRICE_SEED
    ) -> Shop:
        """Draws the prices and, unless it is given, builds the search index."""
        stream = random.Random(price_seed)
        prices = array("d", sampled_prices(catalogue.pricings(), stream))
        if index is None:
            products = [catalogue.titled(number).product for number in range(len(catalogue))]
            index = build_index((p.search_text for p in products), [p.asin for p in products])
        return cls(catalogue, index, prices, stream)

    def with_prices(self, prices: Mapping[str, float]) -> Shop:
        """The same shop with other prices, in dollars, for some products by asin; KeyError if unknown."""
        changed = array("d", self.prices)
        for asin, price in prices.items():
            changed[self.catalogue.number_of(asin)] = price
        stream = random.Random()
        stream.setstate(self._after_prices)
        return Shop(self.catalogue, self.index, changed, stream)

    def product(self, number: int) -> Product:
        return self.catalogue.titled(number).product

    def search(self, query: str) -> tuple[int, ...]:
        """The numbers of the products found, best first; at most 50."""
        return self._search(query)

    def goals(self, human: bool) -> GoalList:
        """All goals of the shop: people's, or the synthetic ones; the same at every call."""
        stream = random.Random()
        stream.setstate(self._after_prices)
        products = ((p, self.prices[number]) for number, p in self.catalogue.with_instruction(human))
        return human_goals(products, stream) if human else synthetic_goals(products, stream)

    def score(self, goal: Goal, number: int, chosen: Sequence[str]) -> Score:
        """What buying product ``number`` with the option values ``chosen`` is worth to ``goal``."""
        wanted = self.catalogue.titled(self.catalogue.number_of(goal.asin))
        return score_purchase(goal, wanted, self.catalogue.titled(number), self.prices[number], chosen)

    def _search_index(self, query: str) -> tuple[int, ...]:
        return tuple(hit.number for hit in self.index.search(query))

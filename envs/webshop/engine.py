"""One shopper in a shop: the pages and actions of the original WebShop text environment, without HTML or
Java.

Departures, all of them where the original would crash or depend on chance: queries that begin with ``<r>``,
``<a>``, ``<c>`` or ``<q>`` are ordinary text, and a product whose id is the name of a button is opened.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from dataclasses import dataclass

from envs.webshop.goals import Goal
from envs.webshop.pages import (
    BACK_TO_SEARCH,
    BUY_NOW,
    NEXT_PAGE,
    PREVIOUS_PAGE,
    PRODUCTS_PER_PAGE,
    SEARCH,
    SUB_PAGES,
    Kind,
    Page,
    done_page,
    index_page,
    item_page,
    results_page,
    sub_page,
)
from envs.webshop.reward import Score
from envs.webshop.shop import Shop

BASE_URL = "http://127.0.0.1:3000"

_ACTION = re.compile(r"(.+)\[(.+)\]")
_SUB_PAGE_BY_NAME = {name.lower(): name for name in SUB_PAGES}
_PAGE_NAMES = ("search_results", "item_page", "item_sub_page", "done")


@dataclass(frozen=True, slots=True)
class Frame:
    """What the shop answers. ``accepted``: the action did something; ``done``: it was a purchase."""

    observation: str
    reward: float
    done: bool
    accepted: bool
    has_search_bar: bool
    clickables: tuple[str, ...]


def parse_action(action: str) -> tuple[str, str] | None:
    """``name[argument]`` as ``(name, argument in lower case)``; what follows the last bracket is ignored."""
    match = _ACTION.match(action)
    return None if match is None else (match[1], match[2].lower())


class Engine:
    """An episode after another for one goal. As in the original, it goes on after a purchase."""

    def __init__(self, shop: Shop, goal: Goal, session: str = "0"):
        self.shop = shop
        self.goal = goal
        self._session = session
        self.score: Score | None = None
        self._open_index()

    def reset(self) -> Frame:
        """Back to the search bar; everything but the goal is forgotten."""
        self.score = None
        self._open_index()
        return self._frame(0.0, False, True)

    def step(self, action: str) -> Frame:
        """Takes ``search[words]``, on any page, or ``click[name]``; anything else changes nothing."""
        parsed = parse_action(action)
        if parsed is not None:
            name, argument = parsed
            if name == "search":
                self._open_results(argument.split(" "), 1)
                return self._frame(0.0, False, True)
            if name == "click" and argument != SEARCH.lower() and argument in self.clickables:
                reward, done = self._click(argument)
                return self._frame(reward, done, True)
        return self._frame(0.0, False, False)

    def copy(self) -> Engine:
        """Another episode in the same state; both go on independently."""
        copied = copy.copy(self)
        copied.options = dict(self.options)
        copied.opened_asins = set(self.opened_asins)
        copied.action_counts = Counter(self.action_counts)
        return copied

    def rich_observation(self) -> str:
        """The current page in the original's mode ``text_rich``."""
        return self.page.rich_observation(self.url, self.opened_asins)

    def _frame(self, reward: float, done: bool, accepted: bool) -> Frame:
        page = self.page
        return Frame(page.observation(), reward, done, accepted, page.has_search_bar, tuple(self.clickables))

    def _click(self, name: str) -> tuple[float, bool]:
        """Carries out a click on ``name``; returns ``(reward, done)``."""
        if self.clickables[name].kind is Kind.PRODUCT:
            self._open_item(name)
            return 0.0, False
        if name == BUY_NOW.lower():
            return self._buy(), True
        where = self._page_name()
        if name == BACK_TO_SEARCH.lower():
            self._open_index()
        elif name == NEXT_PAGE.lower() and where == "search_results":
            self._open_results(self.keywords, self.result_page + 1)
        elif name == PREVIOUS_PAGE.lower() and where == "search_results":
            self._open_results(self.keywords, self.result_page - 1)
        elif name == PREVIOUS_PAGE.lower() and where == "item_page":
            self._open_results(self.keywords, self.result_page)
        elif name in _SUB_PAGE_BY_NAME:
            self._open_sub_page(_SUB_PAGE_BY_NAME[name])
        else:
            self._open_item(name)
        return 0.0, False

    def _page_name(self) -> str:
        """Which page this is by its address, as the original tells: a query can mislead it."""
        return next((name for name in _PAGE_NAMES if name in self.url), "")

    def _show(self, page: Page, path: str) -> None:
        self.page = page
        self.clickables = page.clickables()
        self.url = f"{BASE_URL}/{path}"

    def _open_index(self) -> None:
        self.keywords: list[str] = []
        self.result_page = 0
        self.asin: str | None = None
        self.options: dict[str, str] = {}
        self.opened_asins: set[str] = set()
        self.action_counts: Counter[str] = Counter()
        self._show(index_page(self.goal.instruction_text), self._session)

    def _open_results(self, keywords: list[str], result_page: int) -> None:
        self.keywords, self.result_page = keywords, result_page
        self.asin, self.options = None, {}
        self.action_counts["search"] += 1
        found = self.shop.search(" ".join(keywords))
        shown = found[(result_page - 1) * PRODUCTS_PER_PAGE : result_page * PRODUCTS_PER_PAGE]
        products = [self.shop.product(number) for number in shown]
        page = results_page(self.goal.instruction_text, products, result_page, len(found))
        self._show(page, f"search_results/{self._session}/{'+'.join(keywords)}/{result_page}")

    def _open_item(self, name: str) -> None:
        """The page of the product clicked, or, after a choice or a sub-page, of the same one again."""
        clicked = self.clickables[name]
        if clicked.kind is Kind.PRODUCT:
            self.asin = clicked.text
            self.opened_asins.add(clicked.text)
            self.action_counts["asin"] += 1
        elif clicked.kind is Kind.OPTION:
            self.options[clicked.option_name] = name
            self.action_counts["options"] += 1
        page = item_page(self.goal.instruction_text, self.shop.product(self._number()))
        self._show(page, f"item_page/{self._item_path()}/{json.dumps(self.options)}")

    def _open_sub_page(self, name: str) -> None:
        self.action_counts[name] += 1
        page = sub_page(self.goal.instruction_text, self.shop.product(self._number()), name)
        self._show(page, f"item_sub_page/{self._item_path()}/{name}/{self.options}")

    def _buy(self) -> float:
        self.action_counts["purchase"] += 1
        self.score = self.shop.score(self.goal, self._number(), tuple(self.options.values()))
        page = done_page(str(self.asin), self.options, self.score.total)
        self._show(page, f"done/{self._session}/{self.asin}/{self.options}")
        return self.score.total

    def _item_path(self) -> str:
        return f"{self._session}/{self.asin}/{'+'.join(self.keywords)}/{self.result_page}"

    def _number(self) -> int:
        assert self.asin is not None, "no product is open"
        return self.shop.catalogue.number_of(self.asin)

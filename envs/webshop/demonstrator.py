"""A shopper who knows what every product is, as an expert to imitate, and the fixed wording of prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs.base import DemonstratedAction
from envs.webshop.engine import Engine
from envs.webshop.env import WebshopEnv
from envs.webshop.goals import Goal
from envs.webshop.pages import (
    BUY_NOW,
    NEXT_PAGE,
    PREVIOUS_PAGE,
    PRODUCTS_PER_PAGE,
    SEPARATOR,
    SUB_PAGES,
    Kind,
)
from envs.webshop.products import Product
from envs.webshop.prompt import system_message
from envs.webshop.reachability import FULL_SCORE, choice_for
from envs.webshop.shop import Shop

_REMEMBERED_NAMES = 100
_NEVER = 1_000
_MAX_SOLUTION_ACTIONS = 20

_PHRASES = (
    "Task:",
    "\nTurns so far:",
    "\nYou saw:",
    "\nYou did:",
    "\nYou see:",
    "\nAdmissible actions:",
    SEPARATOR,
    "WebShop",
    " WebShop",
    "Search",
    "Back to Search",
    " Back to Search",
    "Page",
    "(Total results:",
    NEXT_PAGE,
    PREVIOUS_PAGE,
    "Price: $",
    " to $",
    "Rating: N.A.",
    *SUB_PAGES[:3],
    BUY_NOW,
    "search[",
    "click[",
    # With the blank after it, so that the next word is the same token on a page and in an action.
    " Find me ",
    ": ",
    ", and price lower than",
    " dollars",
    "…",
    " more …",
    "The action worked:",
    "The action worked but changed nothing:",
    "The action worked: this is",
    "The search worked:",
    " products found.",
    "The search found no product.",
    "The purchase ended the task. Your score (min 0.0, max 1.0):",
    "' is not an admissible action here: nothing happened.",
)


@dataclass(frozen=True, slots=True)
class Purchase:
    """A way to meet a goal as well as the shop allows: query, product and option values by name."""

    query: str
    number: int
    asin: str
    result_page: int
    choice: Mapping[str, str]


def best_purchase(shop: Shop, goal: Goal) -> Purchase:
    """The best product that a search for the goal's kind of product and attributes finds, the earliest of
    equals; the goal's own where it finds none."""
    query = _query(shop.product(shop.catalogue.number_of(goal.asin)), goal)
    best, best_score, best_place = shop.catalogue.number_of(goal.asin), -1.0, 0
    for place, number in enumerate(shop.search(query.lower())):
        score = shop.score(goal, number, tuple(_choice(shop, goal, number).values())).total
        if score > best_score:
            best, best_score, best_place = number, score, place
        if score == FULL_SCORE:
            break
    asin = shop.product(best).asin
    return Purchase(query, best, asin, best_place // PRODUCTS_PER_PAGE + 1, _choice(shop, goal, best))


def _query(own: Product, goal: Goal) -> str:
    """The instruction's own words up to the options, which a policy can copy; else kind and attributes."""
    if own.instruction is not None and goal.instruction_text.startswith(own.instruction.text):
        return own.instruction.text.removeprefix("Find me ")
    return " ".join((own.query, *goal.attributes))


def _choice(shop: Shop, goal: Goal, number: int) -> dict[str, str]:
    product = shop.product(number)
    choice = choice_for(goal, product)
    if choice is None:
        wanted = goal.options if isinstance(goal.options, Mapping) else {}
        choice = {name: value for name, value in wanted.items() if value in product.options.get(name, ())}
    return choice


class WebshopDemonstrator:
    """Searches for the kind of product and the attributes asked for, opens the best product, chooses and
    buys. Names are written as the page shows them."""

    def __init__(self, env: WebshopEnv, rng: random.Random, detour_share: float):
        if env.engine is None:
            raise ValueError("a demonstrator needs an episode under way")
        self._env = env
        self._rng = rng
        self._detour_share = detour_share
        self.purchase = best_purchase(env.shop, env.engine.goal)
        self._seen_names: list[str] = [BUY_NOW, *self.purchase.choice.values()]
        self._solution = self._way_to_purchase(env.copy())

    def act(self, observation: str, info: dict[str, Any]) -> DemonstratedAction:
        self._see()
        if self._rng.random() < self._detour_share:
            return DemonstratedAction("try something", self.admissible_action(info), is_detour=True)
        return DemonstratedAction(*self._decide(self._engine))

    def admissible_action(self, info: dict[str, Any]) -> str:
        """A search for the first few of the words, or a click on anything of the page."""
        if self._engine.page.has_search_bar:
            words = self.purchase.query.split(" ")
            return f"search[{' '.join(words[: self._rng.randint(1, len(words))])}]"
        return f"click[{self._rng.choice(self._names())}]"

    def inadmissible_action(self, info: dict[str, Any]) -> str | None:
        """A click on something of another page."""
        self._see()
        refused = [name for name in self._seen_names if name.lower() not in self._engine.clickables]
        return f"click[{self._rng.choice(refused)}]" if refused else None

    def try_out(self, action: str) -> tuple[str, bool]:
        """An option before its turn is not nearer: no page shows what is chosen, so it would be forgotten."""
        future = self._env.copy()
        assert future.engine is not None
        _, _, _, _, info = future.step(action)
        before = _missing_options(self._engine, self.purchase)
        after = _missing_options(future.engine, self.purchase)
        is_before_its_turn = len(after) < len(before) and before[0] in after
        is_nearer = actions_left(future.engine, self.purchase) < actions_left(self._engine, self.purchase)
        return info["feedback"], is_nearer and not is_before_its_turn

    def best_action(self) -> str:
        return self._decide(self._engine)[1]

    def solution(self) -> tuple[str, ...]:
        return self._solution

    @property
    def _engine(self) -> Engine:
        assert self._env.engine is not None
        return self._env.engine

    def _way_to_purchase(self, env: WebshopEnv) -> tuple[str, ...]:
        assert env.engine is not None
        actions: list[str] = []
        while env.engine.score is None and len(actions) < _MAX_SOLUTION_ACTIONS:
            actions.append(self._decide(env.engine)[1])
            env.step(actions[-1])
        return tuple(actions) if env.engine.score is not None else ()

    def _names(self) -> list[str]:
        return [text.text for text in self._engine.page.texts if text.kind is not Kind.TEXT]

    def _see(self) -> None:
        self._seen_names = (self._seen_names + self._names())[-_REMEMBERED_NAMES:]

    def _decide(self, engine: Engine) -> tuple[str, str]:
        """``(thought, action)``: the first step of the shortest way to the purchase."""
        purchase = self.purchase
        if engine.asin == purchase.asin:
            if BUY_NOW.lower() not in engine.clickables:
                return "go back", f"click[{PREVIOUS_PAGE}]"
            missing = _missing_options(engine, purchase)
            if missing:
                return f"choose {missing[0]}", f"click[{purchase.choice[missing[0]]}]"
            return "buy it", f"click[{BUY_NOW}]"
        if not _is_searched(engine, purchase):
            return "search", f"search[{purchase.query}]"
        if engine.asin is not None:
            return "go back", f"click[{PREVIOUS_PAGE}]"
        if engine.result_page < purchase.result_page:
            return "look further", f"click[{NEXT_PAGE}]"
        if engine.result_page > purchase.result_page:
            return "go back", f"click[{PREVIOUS_PAGE}]"
        return "open it", f"click[{purchase.asin}]"


def actions_left(engine: Engine, purchase: Purchase) -> int:
    """How many actions lead to ``purchase`` from here, by the demonstrator's way.

    0 after any purchase with a full score, a very large number after another one.
    """
    if engine.score is not None:
        return 0 if engine.score.total == FULL_SCORE else _NEVER
    missing = len(_missing_options(engine, purchase))
    on_sub_page = engine.asin is not None and BUY_NOW.lower() not in engine.clickables
    if engine.asin == purchase.asin:
        return missing + 1 + on_sub_page
    from_results = 1 + len(purchase.choice) + 1
    if not _is_searched(engine, purchase):
        return 1 + purchase.result_page - 1 + from_results
    back = 0 if engine.asin is None else 1 + on_sub_page
    return back + abs(engine.result_page - purchase.result_page) + from_results


def _missing_options(engine: Engine, purchase: Purchase) -> list[str]:
    """In the order in which the demonstrator chooses them."""
    return [name for name, value in purchase.choice.items() if engine.options.get(name) != value]


def _is_searched(engine: Engine, purchase: Purchase) -> bool:
    return purchase_found_by(engine, purchase) == purchase.result_page


def purchase_found_by(engine: Engine, purchase: Purchase) -> int | None:
    """The result page on which the search under way shows the product; None if it does not."""
    found = engine.shop.search(" ".join(engine.keywords)) if engine.keywords else ()
    if purchase.number not in found:
        return None
    return found.index(purchase.number) // PRODUCTS_PER_PAGE + 1


def prompt_phrases(shop: Shop) -> tuple[str, ...]:
    """Stock phrases of prompt, pages, actions and feedback, and the ids of all products."""
    products = (shop.product(number) for number in range(len(shop.catalogue)))
    return (
        *(system_message(show_admissible_actions=shown) for shown in (True, False)),
        *_PHRASES,
        *(product.asin for product in products),
    )

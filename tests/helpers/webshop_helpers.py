"""A shop of a few hand-made products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.webshop.catalogue import InMemoryCatalogue
from envs.webshop.goals import Goal, make_goal
from envs.webshop.nouns import TitleNouns
from envs.webshop.products import Product, read_product
from envs.webshop.provider import WebshopProvider
from envs.webshop.shop import Shop
from serl.types import Task


def record(asin: str, **changes: Any) -> dict[str, Any]:
    """A product record in WebShop's layout."""
    return {
        "asin": asin,
        "name": "Plain Cotton Shirt",
        "full_description": "A shirt for every day.",
        "pricing": "$16.00",
        "small_description": ["Machine wash", "Two pockets"],
        "customization_options": {"Color": [{"value": "Red"}, {"value": " Navy/White "}], "Fit": None},
        "category": "fashion",
        "query": " Shirts ",
        "product_category": "Clothing › Men › Shirts",
    } | changes


def product(asin: str, annotation: dict[str, Any] | None = None, **changes: Any) -> Product:
    return read_product(record(asin, **changes), {asin: annotation} if annotation else {}, {})


def shop_of(products: Sequence[Product], nouns: dict[str, tuple[str, ...]] | None = None) -> Shop:
    return Shop.open(InMemoryCatalogue(products, TitleNouns(nouns or {}, "hand-made")))


def shirt_shop() -> Shop:
    """A shirt, a mug, and twelve more mugs that differ by asin alone."""
    mugs = [
        product(
            f"MUG{number:07d}",
            name="Blue Stone Mug",
            customization_options=None,
            query="mugs",
            category="home",
        )
        for number in range(13)
    ]
    return shop_of([product("SHIRT00001"), *mugs])


def task_with_two_options(provider: WebshopProvider, split: str) -> Task:
    """The first task of the split that asks for two options and can be met in full."""
    unreachable = provider.unreachable_goals(split)
    return next(
        task
        for task in provider.task_set(split).tasks
        if task.task_id not in unreachable and len(provider.goal(task.task_id).options) == 2
    )


def shirt_goal(**changes: Any) -> Goal:
    arguments: dict[str, Any] = {
        "asin": "SHIRT00001",
        "instruction_text": "Find me a shirt, and price lower than 30.00 dollars",
        "attributes": ("machine wash",),
        "price_upper": 30.0,
        "options": {"color": "red"},
    }
    return make_goal(**(arguments | changes))

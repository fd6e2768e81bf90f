"""Plans: the actions of a shopper who knows which product is meant, for demonstrations and proofs."""

from __future__ import annotations

from envs.webshop.goals import Goal
from envs.webshop.pages import PRODUCTS_PER_PAGE
from envs.webshop.reachability import choice_for
from envs.webshop.shop import Shop


class NoPlanError(ValueError):
    """The goal cannot be met in full on its own product, or no search finds that."""


def plan(shop: Shop, goal: Goal) -> tuple[str, ...]:
    """Search, pages, product, options and purchase, for a full score.

    The search is for the kind of product and the attributes, which the instruction names; where that does not
    find the product it is for its title. Raises NoPlanError.
    """
    number = shop.catalogue.number_of(goal.asin)
    product = shop.product(number)
    choice = choice_for(goal, product)
    if choice is None or shop.score(goal, number, tuple(choice.values())).total < 1:
        raise NoPlanError(f"goal {goal.goal_id} cannot be met in full by its own product")
    for query in (" ".join((product.query, *goal.attributes)), product.title):
        found = shop.search(query.lower())
        if number in found:
            pages = found.index(number) // PRODUCTS_PER_PAGE
            return (
                f"search[{query}]",
                *["click[next >]"] * pages,
                f"click[{product.asin}]",
                *(f"click[{value}]" for value in choice.values()),
                "click[buy now]",
            )
    raise NoPlanError(f"no search finds the product of goal {goal.goal_id}")

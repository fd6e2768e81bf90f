"""Goals that no choice of options can meet in full on the very product they were made from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product as combinations

from envs.webshop.fuzzy import token_set_ratio
from envs.webshop.goals import Goal
from envs.webshop.products import Product
from envs.webshop.reward import MATCH_ABOVE, basic_colour, count_attributes, match_types, option_texts
from envs.webshop.shop import Shop

FULL_SCORE = 1.0


def reachable_on_own_product(goal: Goal, shop: Shop) -> bool:
    """Whether some choice of options of the goal's own product scores 1."""
    number = shop.catalogue.number_of(goal.asin)
    own = shop.catalogue.titled(number)
    return (
        match_types(own, own).factor == FULL_SCORE
        and shop.prices[number] <= goal.price_upper
        and count_attributes(goal.attributes, own.product) == len(goal.attributes)
        and _options_can_be_met(goal, own.product)
    )


def _options_can_be_met(goal: Goal, product: Product) -> bool:
    """Whether one value of each option name together match all the goal's options.

    Values that match the same options are alike, so few combinations are left of even many values.
    """
    wanted = option_texts(goal.options)
    everything = (1 << len(wanted)) - 1
    if isinstance(goal.options, dict) and _met(tuple(goal.options.values()), wanted) == everything:
        return True
    choices = [{_met((value,), wanted) for value in values} | {0} for values in product.options.values()]
    return any(_union(chosen) == everything for chosen in combinations(*choices))


def _met(chosen: Iterable[str], wanted: tuple[str, ...]) -> int:
    """The wanted options that ``chosen`` matches, as bits."""
    texts = [basic_colour(value) for value in chosen]
    return sum(
        1 << bit
        for bit, text in enumerate(wanted)
        if any(token_set_ratio(value, text) > MATCH_ABOVE for value in texts)
    )


def _union(sets: Iterable[int]) -> int:
    union = 0
    for bits in sets:
        union |= bits
    return union

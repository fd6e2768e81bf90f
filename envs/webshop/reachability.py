"""Goals that no choice of options can meet in full on the very product they were made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        and choice_for(goal, own.product) is not None
    )


def choice_for(goal: Goal, product: Product) -> dict[str, str] | None:
    """Option values of ``product``, by option name, that match all the goal's options; None if there are
    none.

    Values that match the same options are alike, so few combinations are left of even many values.
    """
    wanted = option_texts(goal.options)
    everything = (1 << len(wanted)) - 1
    own_choice = dict(goal.options) if isinstance(goal.options, dict) else {}
    if _is_offered(own_choice, product) and _met(own_choice.values(), wanted) == everything:
        return own_choice
    choices = [
        {0: None} | {_met((value,), wanted): (name, value) for value in values if value}
        for name, values in product.options.items()
    ]
    for matched in combinations(*choices):
        if _union(matched) == everything:
            picked = (choice[bits] for choice, bits in zip(choices, matched, strict=True))
            return dict(pick for pick in picked if pick is not None)
    return None


def _is_offered(choice: Mapping[str, str], product: Product) -> bool:
    return all(value in product.options.get(name, ()) for name, value in choice.items())


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

"""The shop's comment on an action, as evidence for hindsight."""

from __future__ import annotations

from collections.abc import Mapping

from envs.webshop.engine import Engine, Frame, parse_action
from envs.webshop.prompt import shorten, trim_observation

_MAX_QUOTED_TOKENS = 64


def feedback(engine: Engine, action: str, frame: Frame, seen: str, chosen_before: Mapping[str, str]) -> str:
    """What came of ``action``; after a purchase the score line of its last page.

    ``seen`` is what the shopper sees now, ``chosen_before`` the options chosen before the action.
    """
    if not frame.accepted:
        return f"'{shorten(action)}' is not an admissible action here: nothing happened."
    if frame.done:
        return f"The purchase ended the task. Your score (min 0.0, max 1.0): {frame.reward:.2f}"
    name, argument = parse_action(action) or ("", "")
    if name == "search":
        num_found = len(engine.shop.search(argument))
        found = "1 product" if num_found == 1 else f"{num_found} products"
        return f"The search worked: {found} found." if num_found else "The search found no product."
    for option, value in engine.options.items():
        if value == argument:
            if chosen_before.get(option) == value:
                return f"The action worked but changed nothing: {option} was {value} before."
            return f"The action worked: {option} is now {value}."
    if engine.asin is not None and argument == engine.asin.lower():
        product = engine.shop.product(engine.shop.catalogue.number_of(engine.asin))
        return f"The action worked: this is {product.title}, {product.price_tag}."
    return f"The action worked: {trim_observation(seen, _MAX_QUOTED_TOKENS)}"

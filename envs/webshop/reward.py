"""What a purchase is worth: type × (attributes + options + price) / number of things asked for.

Attributes and option values are compared by `token_set_ratio` above 85. Of a colour only its first basic
colour counts, where there is one; in synthetic goals, whose options come as (name, value) pairs, only if name
or value is exactly that colour. Product types are compared by query, category and the nouns of the titles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from envs.webshop.fuzzy import token_set_ratio
from envs.webshop.goals import Goal
from envs.webshop.products import Product

MATCH_ABOVE = 85

_BASIC_COLOURS = tuple(
    """alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy
    camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral
    cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass
    gray green grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon
    mauve merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter
    pink plum purple rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone
    stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow""".split()
)


@dataclass(frozen=True, slots=True)
class TitledProduct:
    """A product and the nouns of its title."""

    product: Product
    nouns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TypeMatch:
    """How alike two products are in kind. ``factor`` is 1, 0.5, 0.1 or 0."""

    factor: float
    query_match: bool
    category_match: bool
    title_score: float


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a purchase, 0 to 1, and what it is made of; counts are of what the goal asks for."""

    total: float
    type_match: TypeMatch
    num_attributes: int
    num_attributes_matched: int
    num_options: int
    num_options_matched: int
    price_match: bool | None

    @property
    def parts(self) -> dict[str, float | bool]:
        """The parts by the original's names: ``r_*`` how far each is met, ``w_*`` its share."""
        asked = self.num_attributes + self.num_options + 1
        parts: dict[str, float | bool] = {
            "r_type": self.type_match.factor,
            "r_att": self.num_attributes_matched / self.num_attributes,
            "w_att": self.num_attributes / asked,
            "query_match": self.type_match.query_match,
            "category_match": self.type_match.category_match,
            "title_score": self.type_match.title_score,
        }
        if self.num_options:
            parts["r_option"] = self.num_options_matched / self.num_options
            parts["w_option"] = self.num_options / asked
        if self.price_match is not None:
            parts["r_price"] = self.price_match
            parts["w_price"] = 1 / asked
        return parts


def score_purchase(
    goal: Goal, wanted: TitledProduct, bought: TitledProduct, price: float, chosen: Iterable[str]
) -> Score:
    """The score of buying ``bought`` at ``price`` dollars with the option values ``chosen``.

    ``wanted`` is the product the goal was made from. A goal has at least one attribute.
    """
    type_match = match_types(bought, wanted)
    num_attributes = count_attributes(goal.attributes, bought.product)
    num_options = count_options(goal.options, chosen)
    price_match = price <= goal.price_upper if goal.price_upper > 0 else None
    asked = len(goal.attributes) + len(goal.options) + 1
    share = (num_attributes + num_options + bool(price_match)) / asked
    return Score(
        total=share * type_match.factor,
        type_match=type_match,
        num_attributes=len(goal.attributes),
        num_attributes_matched=num_attributes,
        num_options=len(goal.options),
        num_options_matched=num_options,
        price_match=price_match,
    )


def match_types(bought: TitledProduct, wanted: TitledProduct) -> TypeMatch:
    """Compares query, category (two shared levels) and title nouns, which have the last word."""
    query_match = bought.product.query == wanted.product.query
    category_match = len(_levels(bought.product) & _levels(wanted.product)) >= 2
    shared = len(set(bought.nouns) & set(wanted.nouns))
    title_score = shared / len(wanted.nouns) if wanted.nouns else 0.2
    if title_score == 0:
        factor = 0.0
    elif title_score < 0.1:
        factor = 0.1
    else:
        factor = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    return TypeMatch(factor, query_match, category_match, title_score)


def count_attributes(wanted: Sequence[str], product: Product) -> int:
    """How many of the ``wanted`` attributes ``product`` has, as its own or word for word in its texts."""
    return sum(_has_attribute(attribute, product) for attribute in wanted)


def count_options(wanted: Mapping[str, str] | Sequence[str], chosen: Iterable[str]) -> int:
    """How many of the ``wanted`` option values some ``chosen`` value matches."""
    chosen_texts = [basic_colour(value) for value in chosen]
    return sum(
        any(token_set_ratio(value, text) > MATCH_ABOVE for value in chosen_texts)
        for text in option_texts(wanted)
    )


def option_texts(wanted: Mapping[str, str] | Sequence[str]) -> tuple[str, ...]:
    """The wanted options as they are compared."""
    return tuple(
        _option_text(option) for option in (wanted.items() if isinstance(wanted, Mapping) else wanted)
    )


def basic_colour(text: str) -> str:
    """The first basic colour, in alphabetical order, that ``text`` contains; else ``text``."""
    return next((colour for colour in _BASIC_COLOURS if colour in text), text)


def _option_text(option: str | tuple[str, str]) -> str:
    """An option as it is compared; a (name, value) pair that is no colour is compared as Python prints it."""
    if isinstance(option, str):
        return basic_colour(option)
    return next((colour for colour in _BASIC_COLOURS if colour in option), str(option))


def _levels(product: Product) -> set[str]:
    return {level.strip() for level in product.product_category.split("›")}


def _has_attribute(attribute: str, product: Product) -> bool:
    return (
        any(token_set_ratio(own, attribute) > MATCH_ABOVE for own in product.attributes)
        or attribute in product.title.lower()
        or attribute in product.all_bullets.lower()
        or attribute in product.description.lower()
    )

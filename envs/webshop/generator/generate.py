"""Makes up a catalogue in WebShop's own file layouts, with goals from easy to hard, the same for the same
seed.

Easy products ask for one attribute and have nothing to choose; hard ones ask for three attributes, two
options and often cost more than their neighbours, so that the price limit matters. Products of a kind are
alike except for brand, attributes, options and price, as in a real shop.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from envs.webshop.generator.vocabulary import BRANDS, LINES, OPTION_VALUES, PRODUCT_KINDS, ProductKind

_ASIN_LETTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How many attributes a goal asks for, how many options there are, and how many values of each."""

    num_wanted: int
    num_options: int
    num_values: int


# One of each for every six products of a kind; half a shop's products ask for something to be chosen.
DIFFICULTIES = (
    Difficulty(num_wanted=1, num_options=0, num_values=0),
    Difficulty(num_wanted=1, num_options=1, num_values=3),
    Difficulty(num_wanted=2, num_options=0, num_values=0),
    Difficulty(num_wanted=2, num_options=1, num_values=4),
    Difficulty(num_wanted=2, num_options=2, num_values=3),
    Difficulty(num_wanted=3, num_options=2, num_values=3),
)
_PRICE_RANGE_SHARE = 0.25
_HUMAN_FORMS = (
    "i am looking for {noun} with {attributes}{options}",
    "i need {noun}{options}, and it should have {attributes}",
    "please find me some {noun} with {attributes}{options}",
    "i want to buy {noun}{options} that comes with {attributes}",
)


@dataclass(slots=True)
class GeneratedCatalogue:
    """WebShop's files: product records, and by asin attributes and instructions, people's, and nouns."""

    items: list[dict[str, Any]]
    items_ins: dict[str, dict[str, Any]]
    items_human_ins: dict[str, list[dict[str, Any]]]
    nouns: dict[str, list[str]]


def generate_catalogue(seed: int, products_per_kind: int = len(DIFFICULTIES)) -> GeneratedCatalogue:
    """``products_per_kind`` products of each of the 60 kinds, in shuffled order."""
    catalogue = GeneratedCatalogue([], {}, {}, {})
    drawn = [
        (kind, DIFFICULTIES[number % len(DIFFICULTIES)], random.Random(f"{seed}/{kind.noun}/{number}"))
        for kind in PRODUCT_KINDS
        for number in range(products_per_kind)
    ]
    random.Random(seed).shuffle(drawn)
    for kind, difficulty, rng in drawn:
        _add_product(catalogue, kind, difficulty, rng)
    return catalogue


def _add_product(
    catalogue: GeneratedCatalogue, kind: ProductKind, difficulty: Difficulty, rng: random.Random
) -> None:
    asin = _new_asin(catalogue, rng)
    brand, line = rng.choice(BRANDS), rng.choice(LINES)
    attributes = rng.sample(kind.attributes, rng.randint(max(difficulty.num_wanted, 2), 4))
    wanted = attributes[: difficulty.num_wanted]
    option_names = rng.sample(kind.options, min(difficulty.num_options, len(kind.options)))
    options = {name: _values(name, difficulty.num_values, rng) for name in option_names}
    shown = rng.choice(attributes)
    catalogue.items.append(
        {
            "asin": asin,
            "name": f"{brand} {line} {shown.title()} {kind.noun.title()}",
            "full_description": _description(kind, brand, attributes, rng),
            "pricing": _pricing(kind, difficulty, rng),
            "small_description": [f"{attribute.capitalize()}." for attribute in attributes],
            "customization_options": {
                name.title(): [{"value": value} for value in values] for name, values in options.items()
            },
            "category": kind.category,
            "query": kind.noun,
            "product_category": kind.path,
        }
    )
    catalogue.items_ins[asin] = {
        "attributes": attributes,
        "instruction": _instruction(kind, wanted),
        "instruction_attributes": wanted,
    }
    catalogue.items_human_ins[asin] = [_human_instruction(asin, kind, wanted, options, rng)]
    # The last word of an attribute is what it is of ("rubber sole"); brand and kind say the rest.
    catalogue.nouns[asin] = [brand.lower(), shown.split()[-1], *kind.noun.replace("-", " - ").split()]


def _new_asin(catalogue: GeneratedCatalogue, rng: random.Random) -> str:
    while True:
        asin = "B" + "".join(rng.choices(_ASIN_LETTERS, k=9))
        if asin not in catalogue.items_ins:
            return asin


def _values(name: str, count: int, rng: random.Random) -> list[str]:
    """Some values of an option, in the order in which a page lists them."""
    known = list(OPTION_VALUES[name])
    return sorted(rng.sample(known, min(count, len(known))), key=known.index)


def _pricing(kind: ProductKind, difficulty: Difficulty, rng: random.Random) -> str:
    low, high = kind.price_range
    first = rng.triangular(low, high, high if difficulty.num_wanted > 2 else low)
    if rng.random() >= _PRICE_RANGE_SHARE:
        return f"${first:.2f}"
    return f"${first:.2f} - ${first * rng.uniform(1.1, 1.5):.2f}"


def _description(kind: ProductKind, brand: str, attributes: list[str], rng: random.Random) -> str:
    openings = ("Made by", "A favourite from", "New from", "Designed by")
    return f"{rng.choice(openings)} {brand}: {kind.noun} with {_enumerate(attributes)}."


def _instruction(kind: ProductKind, wanted: list[str]) -> str:
    return f"Find me {kind.noun} with {', '.join(wanted)}"


def _human_instruction(
    asin: str, kind: ProductKind, wanted: list[str], options: dict[str, list[str]], rng: random.Random
) -> dict[str, Any]:
    chosen = {name: rng.choice(values) for name, values in options.items()}
    option_text = "".join(f" in {name} {value}" for name, value in chosen.items())
    form = rng.choice(_HUMAN_FORMS)
    return {
        "asin": asin,
        "instruction": form.format(noun=kind.noun, attributes=_enumerate(wanted), options=option_text) + ".",
        "instruction_attributes": wanted,
        "instruction_options": list(chosen.values()),
    }


def _enumerate(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"

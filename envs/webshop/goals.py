"""What shoppers are asked to buy: goals made from a catalogue, the same ones in every process.

Prices and limits come from one stream of random numbers of their own, seeded; the original draws them from
Python's global stream, which it never seeds, so there they differ from process to process. Their order is the
original's: shuffled by the seed 233.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from envs.webshop.products import Instruction, Product

SHUFFLE_SEED = 233
NO_PRICE_LIMIT = 1_000_000

_PRICE_LIMITS = tuple(10.0 * tens for tens in range(1, 100))
_LIMITS_TO_DRAW_FROM = 4


@dataclass(frozen=True, slots=True)
class Goal:
    """``asin`` is the product the goal was made from, ``options`` the values wanted: by option name in a
    synthetic goal, a list in a person's. ``price_upper`` in dollars. ``weight``: how rare its attributes are.
    """

    goal_id: str
    asin: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    options: Mapping[str, str] | tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class GoalList:
    """Goals in the original's order. ``num_without_attributes`` counts instructions that make no goal."""

    goals: tuple[Goal, ...]
    num_without_attributes: int


def sampled_prices(pricings: Iterable[tuple[float, ...]], stream: random.Random) -> Iterator[float]:
    """The price of each product in dollars: its one price, or one drawn between its two."""
    return (prices[0] if len(prices) == 1 else stream.uniform(*prices) for prices in pricings)


def synthetic_goals(products: Iterable[tuple[Product, float]], stream: random.Random) -> GoalList:
    """A goal for every combination of option values of every product with an instruction.

    ``products`` come with their prices, in the order of the catalogue. A product's goals share a price limit.
    """
    goals: list[Goal] = []
    frequencies: Counter[str] = Counter()
    for product, price in products:
        instruction = product.instruction
        if instruction is None:
            continue
        price_upper, price_text = _draw_price_limit(price, stream)
        for options in _combinations(product.options):
            option_text = ", and ".join(f"{name}: {value}" for name, value in options.items())
            text = instruction.text + (f" with {option_text}" if option_text else "") + price_text
            goals.append(make_goal(product.asin, text, instruction.attributes, price_upper, options))
            frequencies.update(instruction.attributes)
    return GoalList(_finished(_weighted(goals, frequencies)), 0)


def human_goals(products: Iterable[tuple[Product, float]], stream: random.Random) -> GoalList:
    """A goal for every instruction a person wrote, each with a price limit of its own."""
    goals: list[Goal] = []
    without_attributes = 0
    for product, price in products:
        for instruction in product.human_instructions:
            if not instruction.attributes:
                without_attributes += 1
                continue
            goals.append(_human_goal(product, instruction, price, stream))
    return GoalList(_finished(goals), without_attributes)


def make_goal(
    asin: str,
    instruction_text: str,
    attributes: Sequence[str],
    price_upper: float,
    options: Mapping[str, str] | Sequence[str],
    weight: float = 1.0,
) -> Goal:
    """A goal whose id is the product's and a digest of all that is asked for."""
    kept = dict(options) if isinstance(options, Mapping) else tuple(options)
    content = json.dumps([instruction_text, list(attributes), price_upper, kept], ensure_ascii=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return Goal(f"{asin}-{digest}", asin, instruction_text, tuple(attributes), price_upper, kept, weight)


def goal_fingerprint(goal: Goal, catalogue_fingerprint: str) -> str:
    """SHA-256 of a goal's content and of the catalogue it is played in, as 64 hexadecimal digits."""
    content = [
        *(catalogue_fingerprint, goal.asin, goal.instruction_text, list(goal.attributes), goal.price_upper),
        dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _human_goal(product: Product, instruction: Instruction, price: float, stream: random.Random) -> Goal:
    price_upper, price_text = _draw_price_limit(price, stream)
    text = instruction.text.strip(".") + price_text
    return make_goal(product.asin, text, instruction.attributes, price_upper, instruction.options)


def _draw_price_limit(price: float, stream: random.Random) -> tuple[float, str]:
    """``(limit, what the instruction says of it)``: the larger of two of the next four multiples of ten."""
    limits = [limit for limit in _PRICE_LIMITS if limit > price][:_LIMITS_TO_DRAW_FROM]
    if len(limits) < 2:
        return NO_PRICE_LIMIT, ""
    price_upper = max(stream.sample(limits, 2))
    return price_upper, f", and price lower than {price_upper:.2f} dollars"


def _combinations(options: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    names = sorted(options)
    for values in itertools.product(*(options[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _weighted(goals: list[Goal], frequencies: Counter[str]) -> list[Goal]:
    weights = {
        attributes: sum(1.0 / frequencies[attribute] for attribute in attributes) / len(attributes)
        for attributes in {goal.attributes for goal in goals}
    }
    return [
        Goal(
            g.goal_id,
            g.asin,
            g.instruction_text,
            g.attributes,
            g.price_upper,
            g.options,
            weights[g.attributes],
        )
        for g in goals
    ]


def _finished(goals: list[Goal]) -> tuple[Goal, ...]:
    """In the original's order, and with ids that are unique: a catalogue may list an option value twice."""
    random.Random(SHUFFLE_SEED).shuffle(goals)
    seen: Counter[str] = Counter()
    finished = []
    for goal in goals:
        seen[goal.goal_id] += 1
        if (repeat := seen[goal.goal_id]) > 1:
            goal = Goal(
                *(f"{goal.goal_id}-{repeat}", goal.asin, goal.instruction_text, goal.attributes),
                *(goal.price_upper, goal.options, goal.weight),
            )
        finished.append(goal)
    return tuple(finished)

"""Recorded WebShop episodes, rewards, searches, goals and prices, compared with our own engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envs.webshop.data_files import find_files, load_catalogue
from envs.webshop.engine import Engine, Frame
from envs.webshop.goals import Goal, make_goal
from envs.webshop.packed import PackedCatalogue, find_pack
from envs.webshop.reachability import reachable_on_own_product
from envs.webshop.reward import Score, score_purchase
from envs.webshop.shop import Shop

SCORE_TOLERANCE = 1e-4

Case = tuple[str, Callable[[], str | None]]
"""A name, and a function that says in words what differs, or None."""


class RecordingError(Exception):
    """A recording or the data cannot be read; the message is one sentence for the user."""


def webshop_cases(files: Sequence[Path], data: Path) -> Iterator[Case]:
    """One case per episode, reward and search, and per file of goals or prices. Raises RecordingError."""
    shop = open_shop(data)
    for path in files:
        yield from read_cases(path, shop)


def open_shop(data: Path) -> Shop:
    """The shop over the files in ``data``: the small catalogue's if they are there, else the prepared full
    one, else the full one's own files, in memory. Raises RecordingError."""
    try:
        try:
            files = find_files(data, "small")
        except FileNotFoundError as no_small_files:
            pack = find_pack(data)
            if pack.is_dir():
                packed = PackedCatalogue(pack)
                return Shop.open(packed, packed.open_index())
            try:
                files = find_files(data, "full")
            except FileNotFoundError:
                raise no_small_files from None
        return Shop.open(load_catalogue(files))
    except (OSError, ValueError) as error:
        raise RecordingError(f"Cannot read the data: {error}.") from error


def read_cases(path: Path, shop: Shop) -> Iterator[Case]:
    """The cases of one recorded file. Raises RecordingError for a file that is no list or mapping of them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordingError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise RecordingError(f"Cannot read {path}: it is not JSON ({error}).") from error
    if isinstance(content, dict):
        yield path.name, _whole_file_case(path, content, shop)
    elif isinstance(content, list) and content and all(isinstance(index, int) for index in content):
        yield path.name, lambda: unreachable_difference(content, shop)
    elif isinstance(content, list) and content:
        for number, record in enumerate(content):
            yield _record_case(path, number, record, shop)
    else:
        raise RecordingError(f"Cannot read {path}: it holds no recordings.")


def _record_case(path: Path, number: int, record: Any, shop: Shop) -> Case:
    kinds: tuple[tuple[str, Callable[[Mapping[str, Any], Shop], str | None]], ...] = (
        ("steps", episode_difference),
        ("buy", reward_difference),
        ("hits", search_difference),
    )
    for key, compare in kinds:
        if isinstance(record, dict) and key in record:
            name = str(record.get("name") or record.get("query") or f"entry {number}")
            return f"{path.name} {name}", partial(_guarded, partial(compare, record, shop))
    return f"{path.name} entry {number}", lambda: "it is no episode, reward or search"


def _whole_file_case(path: Path, content: Mapping[str, Any], shop: Shop) -> Callable[[], str | None]:
    if "sha256_all" in content:
        return lambda: _guarded(lambda: goals_difference(content, shop))
    if content and all(isinstance(price, int | float) for price in content.values()):
        return lambda: _guarded(lambda: prices_difference(content, shop))
    raise RecordingError(f"Cannot read {path}: it is no recording of goals or prices.")


def _guarded(compare: Callable[[], str | None]) -> str | None:
    """A recording that cannot be played differs too: the others still count."""
    try:
        return compare()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError) as error:
        return f"it cannot be played here: {error!r}"


def episode_difference(record: Mapping[str, Any], shop: Shop) -> str | None:
    """Plays a recorded episode; the first difference in words.

    Prices are those of our own stream unless the recording says what the purchase cost.
    """
    goal = recorded_goal(record["goal"])
    if record.get("sampled_price") is not None:
        shop = shop.with_prices({record["purchased_asin"]: record["sampled_price"]})
    engine = Engine(shop, goal, str(record["session"]))
    if "reset" in record and (difference := _page_difference(record["reset"], engine, engine.reset())):
        return f"reset: {difference}"
    for number, step in enumerate(record["steps"]):
        frame = engine.step(step["action"])
        if difference := _page_difference(step, engine, frame):
            return f"step {number}, action {step['action']!r}: {difference}"
    return _first_difference(record, _end_state(engine))


def _page_difference(recorded: Mapping[str, Any], engine: Engine, frame: Frame) -> str | None:
    ours = {
        "reward": frame.reward,
        "done": frame.done,
        "url": engine.url,
        "observation": frame.observation,
        "observation_text_rich": engine.rich_observation(),
        "available_actions": {
            "has_search_bar": frame.has_search_bar,
            "clickables": list(frame.clickables),
        },
    }
    return _first_difference(recorded, ours)


def _end_state(engine: Engine) -> dict[str, Any]:
    state: dict[str, Any] = {
        "purchased_asin": engine.asin,
        "purchased_options": engine.options,
        "action_counts": dict(engine.action_counts),
    }
    if engine.score is not None:
        state |= {"reward": engine.score.total, "reward_info": engine.score.parts}
    return state


def _first_difference(recorded: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    for key, value in ours.items():
        if key in recorded and recorded[key] != value:
            return f"{key} is {value!r}, recorded was {recorded[key]!r}"
    return None


def recorded_goal(goal: Mapping[str, Any]) -> Goal:
    """A goal as the original writes it down."""
    text = goal.get("instruction_text", "")
    return make_goal(goal["asin"], text, goal["attributes"], goal["price_upper"], goal["goal_options"])


def reward_difference(record: Mapping[str, Any], shop: Shop) -> str | None:
    """Scores a recorded purchase; the first difference in words."""
    goal = recorded_goal(record["goal"])
    wanted, bought = (
        shop.catalogue.titled(shop.catalogue.number_of(asin)) for asin in (goal.asin, record["buy"])
    )
    score: Score = score_purchase(goal, wanted, bought, record["price"], tuple(record["options"].values()))
    return _first_difference(record, {"reward": score.total, "info": score.parts})


def search_difference(record: Mapping[str, Any], shop: Shop) -> str | None:
    """Searches for a recorded query; the first difference in words. Scores are recorded to four decimals."""
    hits = shop.index.search(record["query"])
    found = [shop.product(hit.number).asin for hit in hits]
    if found != record["hits"]:
        place = next(
            (i for i, pair in enumerate(zip(found, record["hits"], strict=False)) if len(set(pair)) > 1), -1
        )
        return f"hits differ from place {place} on: {found[:10]!r}, recorded were {record['hits'][:10]!r}"
    for hit, score in zip(hits, record.get("scores", ()), strict=False):
        if abs(hit.score - score) > SCORE_TOLERANCE:
            return f"score of {shop.product(hit.number).asin} is {hit.score:.4f}, recorded was {score}"
    return None


def goals_difference(record: Mapping[str, Any], shop: Shop) -> str | None:
    """Compares all synthetic goals of the shop by their digest."""
    ours = [_as_recorded(goal, shop) for goal in shop.goals(human=False).goals]
    for number, (goal, recorded) in enumerate(zip(ours, record.get("first_20", ()), strict=False)):
        if difference := _first_difference(recorded, goal):
            return f"goal {number}: {difference}"
    digest = hashlib.sha256(json.dumps(ours, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return _first_difference(record, {"n_goals": len(ours), "sha256_all": digest})


def _as_recorded(goal: Goal, shop: Shop) -> dict[str, Any]:
    product = shop.product(shop.catalogue.number_of(goal.asin))
    return {
        "asin": goal.asin,
        "category": product.category,
        "query": product.query,
        "name": product.title,
        "product_category": product.product_category,
        "instruction_text": goal.instruction_text,
        "attributes": list(goal.attributes),
        "price_upper": goal.price_upper,
        "goal_options": dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options),
        "weight": goal.weight,
    }


def prices_difference(record: Mapping[str, Any], shop: Shop) -> str | None:
    """Compares the prices drawn for all products."""
    ours = {shop.product(number).asin: price for number, price in enumerate(shop.prices)}
    return _first_difference({"prices": dict(record)}, {"prices": ours}) if ours != record else None


def unreachable_difference(record: list[int], shop: Shop) -> str | None:
    """Compares which synthetic goals cannot be met in full."""
    goals = shop.goals(human=False).goals
    ours = [number for number, goal in enumerate(goals) if not reachable_on_own_product(goal, shop)]
    return _first_difference({"unreachable": record}, {"unreachable": ours})

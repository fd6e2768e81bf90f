"""The WebShop engine: steps and episodes in a small shop, start and search in a large one."""

from __future__ import annotations

import argparse
import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from envs.webshop.catalogue import InMemoryCatalogue, ProductReader
from envs.webshop.data_files import DataFiles
from envs.webshop.engine import Engine
from envs.webshop.generator.generate import DIFFICULTIES, GeneratedCatalogue, generate_catalogue
from envs.webshop.nouns import TitleNouns
from envs.webshop.oracle import NoPlanError, plan
from envs.webshop.packed import PackedCatalogue, write_pack
from envs.webshop.shop import Shop
from tools.bench.figures import Figures

STEP_GOAL_MS = 1.0
EPISODE_GOAL_MB = 2.0
LOAD_GOAL_S = 60.0
SEARCH_GOAL_MS = 20.0

_PER_KIND = 17  # 60 kinds: 1,020 products
_GROWTH = 10
_QUERIES = 40
_DESCRIPTION_WORDS = 120
_VOCABULARY = 100_000
_STATUS = Path("/proc/self/status")


def run(options: argparse.Namespace, figures: Figures) -> None:
    figures.note(f"WebShop, {60 * _PER_KIND} made-up products in memory")
    generated = generate_catalogue(0, _PER_KIND)
    shop = _small_shop(generated)
    figures.add("webshop episode", [_episode_mb(shop, options.games)], "MB", at_most=EPISODE_GOAL_MB)
    steps, resets = [], []
    for repetition in range(options.repetitions):
        step_ms, reset_ms = _play(shop, options.games * 5, options.steps, repetition)
        steps.append(step_ms)
        resets.append(reset_ms)
    figures.add("webshop step", steps, "ms", at_most=STEP_GOAL_MS)
    figures.add("webshop reset", resets, "ms")
    figures.add("webshop step / goal", [ms / STEP_GOAL_MS for ms in steps])
    if options.products:
        _report_large(options.products, options.repetitions, figures)


def _small_shop(generated: GeneratedCatalogue) -> Shop:
    reader = ProductReader(generated.items_ins, generated.items_human_ins)
    nouns = TitleNouns({asin: tuple(tokens) for asin, tokens in generated.nouns.items()}, "the generator")
    return Shop.open(InMemoryCatalogue(reader.read(generated.items), nouns))


def _play(shop: Shop, num_episodes: int, num_steps: int, seed: int) -> tuple[float, float]:
    """Mean milliseconds of a step and of a reset: plans, and random clicks and searches in turns.

    The searches are new ones each time: the shop remembers what it was asked for lately.
    """
    goals = shop.goals(human=False).goals
    draw = random.Random(seed)
    seconds, num_taken, reset_seconds = 0.0, 0, 0.0
    for number in range(num_episodes):
        goal = draw.choice(goals)
        actions = _actions(shop, goal, draw, num_steps) if number % 2 else _plan(shop, goal)
        started = time.perf_counter()
        engine = Engine(shop, goal)
        engine.reset()
        reset_seconds += time.perf_counter() - started
        for action in actions:
            started = time.perf_counter()
            engine.step(action)
            seconds += time.perf_counter() - started
            num_taken += 1
    return 1000 * seconds / num_taken, 1000 * reset_seconds / num_episodes


def _plan(shop: Shop, goal: Any) -> tuple[str, ...]:
    try:
        return plan(shop, goal)
    except NoPlanError:
        return (f"search[{goal.instruction_text}]", "click[next >]", "click[back to search]")


def _actions(shop: Shop, goal: Any, draw: random.Random, num_steps: int) -> list[str]:
    """Random clicks, played ahead in an engine of their own."""
    engine = Engine(shop, goal)
    frame = engine.reset()
    actions = []
    words = goal.instruction_text.split()
    for _ in range(num_steps):
        names = [name for name in frame.clickables if name != "search"]
        action = f"click[{draw.choice(names)}]" if names else f"search[{' '.join(draw.choices(words, k=5))}]"
        actions.append(action)
        frame = engine.step(action)
    return actions


def _episode_mb(shop: Shop, num_episodes: int) -> float:
    """MB (10**6 bytes) of Python objects for each of some episodes that stay alive, each on a product."""
    goals = shop.goals(human=False).goals[:num_episodes]
    plans = [_plan(shop, goal) for goal in goals]
    held = []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for goal, actions in zip(goals, plans, strict=True):
        engine = Engine(shop, goal)
        for action in actions[:-1]:
            engine.step(action)
        held.append(engine)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / len(held) / 1e6


def _report_large(num_products: int, repetitions: int, figures: Figures) -> None:
    """A tenth of the products first: how load, search and size grow."""
    small, large = (
        _measure_pack(size, repetitions, figures) for size in (num_products // _GROWTH, num_products)
    )
    for name in large:
        figures.add_ratio(f"webshop {name}, {_GROWTH} times the products", large[name], small[name])


def _measure_pack(num_products: int, repetitions: int, figures: Figures) -> dict[str, list[float]]:
    with TemporaryDirectory(prefix="serl-webshop-") as folder:
        files = _write_files(Path(folder), num_products)
        started = time.perf_counter()
        write_pack(files, TitleNouns({}, "words"), Path(folder) / "pack")
        prepared = time.perf_counter() - started
        anonymous = _anonymous_mb()
        loads = []
        for _ in range(repetitions):
            started = time.perf_counter()
            catalogue = PackedCatalogue(Path(folder) / "pack")
            shop = Shop.open(catalogue, catalogue.open_index())
            loads.append(time.perf_counter() - started)
        queries = _queries(shop)
        searches = [_search_ms(shop, queries) for _ in range(repetitions)]
        own_mb = _anonymous_mb() - anonymous
        index_mb = shop.index.num_bytes / 1e6
    what = f"{len(catalogue)} products"
    figures.note(f"WebShop, {what} in mapped files, prepared in {prepared:.0f} s")
    figures.add(f"webshop load, {what}", loads, "s", at_most=LOAD_GOAL_S)
    figures.add(f"webshop search, {what}", [mean for mean, _ in searches], "ms", at_most=SEARCH_GOAL_MS)
    figures.add(f"webshop slowest search, {what}", [slowest for _, slowest in searches], "ms")
    figures.add(f"webshop index, shared, {what}", [index_mb], "MB")
    figures.add(f"webshop memory of each process, {what}", [max(own_mb, 0.0)], "MB")
    return {"search": [mean for mean, _ in searches], "index": [index_mb]}


def _queries(shop: Shop) -> list[str]:
    """What shoppers ask for: kinds with their attributes, and whole titles."""
    draw = random.Random(0)
    products = [shop.product(draw.randrange(len(shop.catalogue))) for _ in range(_QUERIES)]
    return [
        product.title if number % 4 == 0 else " ".join((product.query, *product.attributes[:2]))
        for number, product in enumerate(products)
    ]


def _search_ms(shop: Shop, queries: list[str]) -> tuple[float, float]:
    """``(mean, longest)`` milliseconds; the index remembers no answers, only the shop does."""
    times = []
    for query in queries:
        started = time.perf_counter()
        shop.index.search(query)
        times.append(1000 * (time.perf_counter() - started))
    return sum(times) / len(times), max(times)


def _write_files(folder: Path, num_products: int) -> DataFiles:
    """WebShop's product and annotation files, in parts that fit into memory."""
    files = DataFiles(folder / "items_shuffle.json", folder / "items_ins_v2.json", None, None)
    with files.products.open("w") as products, files.annotations.open("w") as annotations:
        for out, opening in ((products, "["), (annotations, "{")):
            out.write(opening)
        for number, (item, annotation) in enumerate(_made_up(num_products)):
            separator = ",\n" if number else ""
            products.write(separator + json.dumps(item))
            annotations.write(f"{separator}{json.dumps(item['asin'])}:{json.dumps(annotation)}")
        products.write("]")
        annotations.write("}")
    return files


def _made_up(num_products: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Generated products with descriptions as long as those of real ones, of words as rare as Zipf's."""
    draw = random.Random(0)
    made = 0
    seed = 0
    while made < num_products:
        part = generate_catalogue(seed, len(DIFFICULTIES))
        for item in part.items[: num_products - made]:
            words = (f"word{int(_VOCABULARY ** draw.random())}" for _ in range(_DESCRIPTION_WORDS))
            item["full_description"] += f" {' '.join(words)}."
            yield item, part.items_ins[item["asin"]]
        made += len(part.items)
        seed += 1


def _anonymous_mb() -> float:
    """MB (10**6 bytes) that this process shares with no other and no file; 0 where Linux does not say."""
    if not _STATUS.exists():
        return 0.0
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0

"""Environments: the ALFWorld engine against the original one, TextWorld, on the same games; then WebShop."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import Game
from envs.alfworld.game_sources import GameSource, open_source
from envs.alfworld.pack import PackError
from envs.alfworld.textworld_engine import MissingTextWorldError, TextWorldEngine
from envs.webshop.catalogue import InMemoryCatalogue, ProductReader
from envs.webshop.data_files import DataFiles
from envs.webshop.engine import Engine as ShopEngine
from envs.webshop.generator.generate import DIFFICULTIES, generate_catalogue
from envs.webshop.nouns import TitleNouns
from envs.webshop.oracle import NoPlanError, plan
from envs.webshop.packed import PackedCatalogue, write_pack
from envs.webshop.shop import Shop
from tools.bench.figures import Figures

_SPLIT = "train"
_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")

_PER_KIND = 17  # 60 kinds: 1,020 products
_GROWTH = 10
_QUERIES = 40
_DESCRIPTION_WORDS = 120
_VOCABULARY = 100_000


@dataclass(slots=True)
class _Times:
    """Milliseconds of one repetition: every load up to the first observation, and every step."""

    loads: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def env(options: argparse.Namespace, figures: Figures) -> None:
    _alfworld(options, figures)
    shop = _small_shop()
    figures.note(f"WebShop, {len(shop.catalogue)} made-up products in memory")
    figures.add("webshop episode", [_episode_mb(shop, options.games)], "MB", at_most=2.0)
    played = [_play_shop(shop, options.games * 5, options.steps, seed) for seed in range(options.repetitions)]
    figures.add("webshop step", [mean(times.steps) for times in played], "ms", at_most=1.0)
    figures.add("webshop reset", [mean(times.loads) for times in played], "ms")
    if options.products:
        # A tenth of the products first: how search and size grow.
        sizes = options.products, options.products // _GROWTH
        for size in reversed(sizes):
            _measure_pack(size, options.repetitions, figures)
        for what in ("search", "index"):
            figures.add_ratio(*(f"webshop {what}, {size} products" for size in sizes))


def _alfworld(options: argparse.Namespace, figures: Figures) -> None:
    try:
        source = open_source(options.data)
    except (FileNotFoundError, PackError) as error:
        raise argparse.ArgumentError(None, str(error)) from error
    has_textworld = _has_textworld(source, figures)
    figures.note(
        f"{options.games} games of {options.data}, {options.steps} steps each, "
        f"{options.repetitions} repetitions"
    )
    # First: later episodes would grow into memory that earlier ones have left.
    _report_memory(source, options, figures, has_textworld)
    native, original, num_different = [], [], 0
    for repetition in range(options.repetitions):
        own, others = _Times(), _Times()
        for task_id in _task_ids(source, options.games, repetition):
            game, frames = _play_native(source, task_id, options.steps, repetition, own)
            if has_textworld:
                num_different += _play_original(game, frames, others)
        native.append(own)
        original.append(others)
    figures.add("native step", [mean(times.steps) for times in native], "ms", at_most=0.1)
    figures.add("native load", [mean(times.loads) for times in native], "ms", at_most=20.0)
    if has_textworld:
        figures.add("TextWorld step", [mean(times.steps) for times in original], "ms")
        figures.add("TextWorld load", [mean(times.loads) for times in original], "ms")
        figures.add_ratio("TextWorld step", "native step")
        figures.add_ratio("TextWorld load", "native load")
        figures.note(f"  steps with another answer than TextWorld's: {num_different}")


def _has_textworld(source: GameSource, figures: Figures) -> bool:
    """Also loads what all games share, which happens once a process."""
    game = source.load(_task_ids(source, 1, seed=0)[0])
    try:
        TextWorldEngine(game).close()
    except MissingTextWorldError as error:
        figures.note(f"not compared with TextWorld: {error}")
        return False
    return True


def _task_ids(source: GameSource, number: int, seed: int) -> list[str]:
    records = source.scan(_SPLIT).records
    if len(records) < number:
        raise argparse.ArgumentError(
            None, f"{number} games are asked for, split {_SPLIT!r} has {len(records)}"
        )
    return [record.task_id for record in random.Random(seed).sample(records, number)]


def _play_native(
    source: GameSource, task_id: str, num_steps: int, seed: int, times: _Times
) -> tuple[Game, list[tuple[str, Frame]]]:
    """Random admissible commands; returns the game, the commands and what they showed."""
    started = time.perf_counter()
    game = source.load(task_id)
    engine = Engine(game)
    frame = engine.reset()
    times.loads.append(_ms_since(started))
    frames = []
    draw = random.Random(f"{seed} {task_id}")
    for _ in range(num_steps):
        command = draw.choice(frame.admissible_commands)
        started = time.perf_counter()
        frame = engine.step(command)
        times.steps.append(_ms_since(started))
        frames.append((command, frame))
    return game, frames


def _play_original(game: Game, frames: Sequence[tuple[str, Frame]], times: _Times) -> int:
    """The same commands in TextWorld; returns how many frames differ."""
    started = time.perf_counter()
    engine = TextWorldEngine(game)
    engine.reset()
    times.loads.append(_ms_since(started))
    num_different = 0
    for command, frame in frames:
        started = time.perf_counter()
        answer = engine.step(command)
        times.steps.append(_ms_since(started))
        num_different += answer != frame
    engine.close()
    return num_different


def _report_memory(
    source: GameSource, options: argparse.Namespace, figures: Figures, has_textworld: bool
) -> None:
    """Native episodes by Python's own account, TextWorld's, held by a C library, by what the process grew."""
    task_ids = _task_ids(source, options.games, seed=options.repetitions)
    games = [source.load(task_id) for task_id in task_ids]

    def of_its_own(number: int) -> Engine:
        return _walked(Engine(source.load(task_ids[number])), options.steps)

    def of_loaded(number: int) -> Engine:
        return _walked(Engine(games[number]), options.steps)

    def original(number: int) -> TextWorldEngine:
        return _walked(TextWorldEngine(games[number]), min(options.steps, 3))

    tracemalloc.start()
    own, _ = _grown_mb(of_its_own, options.games, _traced_bytes)
    loaded, _ = _grown_mb(of_loaded, options.games, _traced_bytes)
    tracemalloc.stop()
    figures.add("native episode of a game of its own", [own], "MB", at_most=1.0)
    figures.add("native episode of a loaded game", [loaded], "MB", at_most=1.0)
    if has_textworld and _STATM.exists():
        size, engines = _grown_mb(original, options.games, _resident_bytes)
        for engine in engines:
            engine.close()
        figures.add("TextWorld episode", [size], "MB")
        figures.add_ratio("TextWorld episode", "native episode of a game of its own")


def _walked(engine: Any, num_steps: int) -> Any:
    """``engine`` after ``num_steps`` steps."""
    frame = engine.reset()
    draw = random.Random(0)
    for _ in range(num_steps):
        frame = engine.step(draw.choice(frame.admissible_commands))
    return engine


def _grown_mb(
    make: Callable[[int], Any], number: int, used_bytes: Callable[[], int]
) -> tuple[float, list[Any]]:
    """By how many MB (10**6 bytes) each of ``number`` objects lets the process grow; and the objects."""
    held = [None] * number
    before = used_bytes()
    for index in range(number):
        held[index] = make(index)
    return (used_bytes() - before) / number / 1e6, held


def _traced_bytes() -> int:
    return tracemalloc.get_traced_memory()[0]


def _resident_bytes() -> int:
    return int(_STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _anonymous_mb() -> float:
    """MB (10**6 bytes) that this process shares with no other and no file; 0 where Linux does not say."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.exists() else []
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon:"))


def _ms_since(started: float) -> float:
    return 1000.0 * (time.perf_counter() - started)


def _small_shop() -> Shop:
    generated = generate_catalogue(0, _PER_KIND)
    reader = ProductReader(generated.items_ins, generated.items_human_ins)
    nouns = TitleNouns({asin: tuple(tokens) for asin, tokens in generated.nouns.items()}, "the generator")
    return Shop.open(InMemoryCatalogue(reader.read(generated.items), nouns))


def _play_shop(shop: Shop, num_episodes: int, num_steps: int, seed: int) -> _Times:
    """Plans, and random clicks and searches in turns.

    The searches are new ones each time: the shop remembers what it was asked for lately.
    """
    goals = shop.goals(human=False).goals
    draw = random.Random(seed)
    times = _Times()
    for number in range(num_episodes):
        goal = draw.choice(goals)
        planned = () if number % 2 else _plan(shop, goal)
        started = time.perf_counter()
        engine = ShopEngine(shop, goal)
        frame = engine.reset()
        times.loads.append(_ms_since(started))
        for index in range(len(planned) or num_steps):
            action = planned[index] if planned else _random_action(frame, goal, draw)
            started = time.perf_counter()
            frame = engine.step(action)
            times.steps.append(_ms_since(started))
    return times


def _plan(shop: Shop, goal: Any) -> tuple[str, ...]:
    try:
        return plan(shop, goal)
    except NoPlanError:
        return (f"search[{goal.instruction_text}]", "click[next >]", "click[back to search]")


def _random_action(frame: Any, goal: Any, draw: random.Random) -> str:
    names = [name for name in frame.clickables if name != "search"]
    words = draw.choices(goal.instruction_text.split(), k=5)
    return f"click[{draw.choice(names)}]" if names else f"search[{' '.join(words)}]"


def _episode_mb(shop: Shop, num_episodes: int) -> float:
    """MB (10**6 bytes) of Python objects for each of some episodes that stay alive, each on a product."""
    goals = shop.goals(human=False).goals[:num_episodes]
    plans = [_plan(shop, goal) for goal in goals]

    def on_a_product(number: int) -> ShopEngine:
        engine = ShopEngine(shop, goals[number])
        for action in plans[number][:-1]:
            engine.step(action)
        return engine

    tracemalloc.start()
    grown, _ = _grown_mb(on_a_product, len(goals), _traced_bytes)
    tracemalloc.stop()
    return grown


def _measure_pack(num_products: int, repetitions: int, figures: Figures) -> None:
    with TemporaryDirectory(prefix="serl-webshop-") as folder:
        files = _write_files(Path(folder), num_products)
        started = time.perf_counter()
        write_pack(files, TitleNouns({}, "words"), Path(folder) / "pack")
        figures.note(f"WebShop, mapped files, prepared in {time.perf_counter() - started:.0f} s")
        anonymous = _anonymous_mb()
        loads = []
        for _ in range(repetitions):
            started = time.perf_counter()
            catalogue = PackedCatalogue(Path(folder) / "pack")
            shop = Shop.open(catalogue, catalogue.open_index())
            loads.append(_ms_since(started) / 1000.0)
        queries = _queries(shop)
        searches = [_search_ms(shop, queries) for _ in range(repetitions)]
        own_mb = max(_anonymous_mb() - anonymous, 0.0)
        index_mb = shop.index.num_bytes / 1e6
    what = f"{num_products} products"
    figures.add(f"webshop load, {what}", loads, "s", at_most=60.0)
    figures.add(f"webshop search, {what}", map(mean, searches), "ms", at_most=20.0)
    figures.add(f"webshop slowest search, {what}", map(max, searches), "ms")
    figures.add(f"webshop index, {what}", [index_mb], "MB")
    figures.add(f"webshop memory of each process, {what}", [own_mb], "MB")


def _queries(shop: Shop) -> list[str]:
    """What shoppers ask for: kinds with their attributes, and whole titles."""
    draw = random.Random(0)
    products = [shop.product(draw.randrange(len(shop.catalogue))) for _ in range(_QUERIES)]
    return [
        product.title if number % 4 == 0 else " ".join((product.query, *product.attributes[:2]))
        for number, product in enumerate(products)
    ]


def _search_ms(shop: Shop, queries: list[str]) -> list[float]:
    """Of each query; the index remembers no answers, only the shop does."""
    times = []
    for query in queries:
        started = time.perf_counter()
        shop.index.search(query)
        times.append(_ms_since(started))
    return times


def _write_files(folder: Path, num_products: int) -> DataFiles:
    """WebShop's product and annotation files, in parts that fit into memory."""
    files = DataFiles(folder / "items_shuffle.json", folder / "items_ins_v2.json", None, None)
    with files.products.open("w") as products, files.annotations.open("w") as annotations:
        products.write("[")
        annotations.write("{")
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
    made = seed = 0
    while made < num_products:
        part = generate_catalogue(seed, len(DIFFICULTIES))
        for item in part.items[: num_products - made]:
            words = (f"word{int(_VOCABULARY ** draw.random())}" for _ in range(_DESCRIPTION_WORDS))
            item["full_description"] += f" {' '.join(words)}."
            yield item, part.items_ins[item["asin"]]
        made += len(part.items)
        seed += 1

"""WebShop's files with anything lost, doubled or replaced: a shop to play in, or damage that is told."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import any_text, damaged_bytes, damaged_json, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from webshop_helpers import product, shirt_goal, shop_of

from envs.webshop.engine import Engine
from envs.webshop.provider import make_provider
from serl.config.yaml_files import is_unicode

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "webshop"
FILES = ("items_shuffle_1000.json", "items_ins_v2_1000.json", "items_human_ins.json", "title_nouns.json")
odd_names = st.sampled_from(
    ["buy now", "reviews", "Features", "back to search", "next >", "< prev", "search", "item_page", "a]", ""]
)
actions = st.lists(
    st.sampled_from(["search[", "click[", "]", "buy now", "red", "mug", "next >", "< prev", "description"])
    | odd_names
    | any_text,
    max_size=5,
).map("".join)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for file in FILES:
            shutil.copy(FIXTURES / file, name)
        yield Path(name)


def play(folder: Path, human_goals: bool, action: str) -> None:
    """Every product that is listed can be found and bought; whatever is not, the error says where it lies."""
    try:
        provider = make_provider({"catalogue": "small", "data": str(folder), "human_goals": human_goals})
        assert len(provider.shop.prices) > 0
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error)
        return
    for split in ("train", "valid", "test"):
        try:
            tasks = provider.task_set(split).tasks
        except ValueError as error:
            assert "no goal in split" in str(error)
            continue
        env = provider.make_env()
        for task in tasks[:3]:
            observation, info = env.reset(options={"task_id": task.task_id})
            asin = provider.goal(task.task_id).asin.lower()
            for step in (action, "search[mug shirt rug]", f"click[{asin}]", action, "click[buy now]"):
                assert is_unicode(observation) and all(map(is_unicode, info["admissible_actions"]))
                assert is_unicode(info["task_description"]) and is_unicode(task.task_id)
                observation, reward, terminated, _, info = env.step(step)
                assert 0.0 <= reward <= 10.0
                if terminated:
                    break


@pytest.mark.parametrize("name", FILES)
@fuzzed(12)
@given(data=st.data(), human_goals=st.booleans(), action=actions)
def test_a_damaged_file_is_told_or_its_products_can_be_bought(
    name: str, folder: Path, data: st.DataObject, human_goals: bool, action: str
):
    file = folder / name
    whole = file.read_bytes()
    try:
        values = damaged_json(json.loads(whole)).map(lambda value: json.dumps(value).encode())
        file.write_bytes(data.draw(values | damaged_bytes(whole)))
        play(folder, human_goals, action)
    finally:
        file.write_bytes(whole)


@fuzzed(40)
@given(
    asins=st.lists(odd_names, min_size=1, max_size=3, unique_by=str.lower),
    options=st.lists(odd_names | any_text, max_size=3),
    clicks=st.lists(actions | odd_names.map(lambda name: f"click[{name}]"), max_size=6),
)
@example(["buy now"], [], ["search[mug]", "click[buy now]"])
@example(["Features"], ["reviews"], ["search[mug]", "click[features]"])
def test_products_and_options_may_be_called_like_buttons(
    asins: list[str], options: list[str], clicks: list[str]
):
    custom = {"Kind": [{"value": option} for option in options]}
    products = [product(asin, name="Mug", customization_options=custom) for asin in asins]
    shop = shop_of(products)
    engine = Engine(shop, shirt_goal(asin=asins[0]))
    for click in ["search[mug]", *clicks]:
        frame = engine.step(click)
        if frame.done:
            break
        for name in frame.clickables:
            engine.copy().step(f"click[{name}]")

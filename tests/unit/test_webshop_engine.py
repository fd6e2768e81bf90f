from __future__ import annotations

import json

import pytest
from webshop_helpers import product, shirt_goal, shirt_shop, shop_of

from envs.webshop.engine import BASE_URL, Engine, parse_action
from envs.webshop.pages import Page, Text

INSTRUCTION = "Find me a shirt, and price lower than 30.00 dollars"


def engine_at(*actions: str) -> Engine:
    engine = Engine(shirt_shop(), shirt_goal(), "7")
    for action in actions:
        assert engine.step(action).accepted, action
    return engine


def test_an_episode_reads_like_the_original() -> None:
    engine = engine_at()
    frame = engine.reset()
    assert frame.observation == f"WebShop [SEP] Instruction: [SEP] {INSTRUCTION} [SEP] Search"
    assert (frame.clickables, frame.has_search_bar, engine.url) == (("search",), True, f"{BASE_URL}/7")
    frame = engine.step("search[Cotton  SHIRT]")
    heading = f"Instruction: [SEP] {INSTRUCTION} [SEP] Back to Search"
    assert frame.observation == (
        f"{heading} [SEP] Page 1 (Total results: 14) [SEP] Next > [SEP] "
        "SHIRT00001 [SEP] Plain Cotton Shirt [SEP] $16.0"
        + "".join(f" [SEP] MUG{number:07d} [SEP] Blue Stone Mug [SEP] $16.0" for number in range(9))
    )
    assert engine.url == f"{BASE_URL}/search_results/7/cotton++shirt/1"
    assert frame.clickables[:3] == ("back to search", "next >", "shirt00001")
    frame = engine.step("click[SHIRT00001] and more")
    assert frame.observation == (
        f"{heading} [SEP] < Prev [SEP] color [SEP] red [SEP] navy | white [SEP] Plain Cotton Shirt [SEP] "
        "Price: $16.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    assert frame.clickables == (
        *("back to search", "< prev", "description", "features", "reviews", "buy now", "red", "navy | white"),
    )
    assert engine.step("click[features]").observation == (
        f"{heading} [SEP] < Prev [SEP] Machine wash [SEP] Two pockets"
    )
    assert engine.url == f"{BASE_URL}/item_sub_page/7/SHIRT00001/cotton++shirt/1/Features/{{}}"
    engine.step("click[< prev]")
    frame = engine.step("click[red]")
    assert engine.url == f'{BASE_URL}/item_page/7/SHIRT00001/cotton++shirt/1/{{"color": "red"}}'
    assert engine.rich_observation().startswith("You have clicked red.\nInstruction:\n")
    assert (
        "  [clicked button] red [clicked button_]\n  [button] navy | white [button_]\n"
        in engine.rich_observation()
    )
    frame = engine.step("click[buy now]")
    assert (frame.reward, frame.done, frame.clickables) == (1.0, True, ())
    assert '[SEP] options [SEP] {"color": "red"} [SEP] attrs' in frame.observation
    assert frame.observation.endswith(
        "Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None"
    )
    assert dict(engine.action_counts) == {"search": 1, "asin": 1, "Features": 1, "options": 1, "purchase": 1}


@pytest.mark.parametrize(
    "action",
    [
        "",
        "buy",
        "search",
        "search[]",
        "click[]",
        "click[search]",
        "Click[search]",
        "click[mug]",
        "search\n[a]",
    ],
)
def test_what_is_no_action_changes_nothing(action: str) -> None:
    engine = engine_at()
    before = engine.reset()
    frame = engine.step(action)
    assert not frame.accepted and (frame.observation, frame.reward, frame.done) == (
        before.observation,
        0.0,
        False,
    )


def test_actions_are_taken_apart_greedily() -> None:
    assert parse_action("search[Red [big] mug] please]") == ("search[Red ", "big] mug] please")
    assert parse_action("search[Red mug] now") == ("search", "red mug")
    assert parse_action("think") is None


@pytest.mark.parametrize("query", ["<r>", "<a> wool", "<c>", "<c> fashion", "<q> mugs"])
def test_queries_that_crash_the_original_or_filter_there_are_words_like_others(query: str) -> None:
    frame = engine_at().step(f"search[{query}]")
    count = 13 if "mugs" in query else 0
    assert frame.accepted and f"Page 1 (Total results: {count})" in frame.observation


def test_there_is_always_a_next_page_and_a_previous_one_after_the_first() -> None:
    engine = engine_at("search[mug]", "click[next >]")
    frame = engine.step("click[next >]")
    assert frame.observation.endswith("Page 3 (Total results: 13) [SEP] < Prev [SEP] Next >")
    engine.step("click[< prev]")
    assert "MUG0000012" in engine.page.observation() and "< prev" in engine.clickables
    engine.step("click[< prev]")
    assert "< prev" not in engine.clickables


def test_leaving_a_product_forgets_its_options_and_a_sub_page_does_not() -> None:
    engine = engine_at("search[shirt]", "click[shirt00001]", "click[red]", "click[navy | white]")
    assert engine.options == {"color": "navy | white"}
    engine.step("click[reviews]")
    engine.step("click[< prev]")
    assert engine.options == {"color": "navy | white"}
    engine.step("click[< prev]")
    assert (engine.asin, engine.options) == (None, {})
    assert "\n[clicked button] SHIRT00001 [clicked button_]\n" in engine.rich_observation()
    engine.step("click[back to search]")
    assert not engine.opened_asins and not engine.action_counts


def test_searching_works_on_every_page_and_after_the_end() -> None:
    engine = engine_at("search[shirt]", "click[shirt00001]", "search[mug]")
    assert engine.url.startswith(f"{BASE_URL}/search_results/")
    engine = engine_at("search[shirt]", "click[shirt00001]", "click[buy now]")
    assert not engine.step("click[back to search]").accepted
    assert engine.step("search[mug]").accepted and engine.asin is None
    assert engine.score is not None and engine.score.total == pytest.approx(2 / 3)
    assert engine.reset().has_search_bar and engine.score is None


def test_a_query_can_mislead_the_previous_button_as_in_the_original() -> None:
    engine = engine_at("search[shirt search_results]", "click[shirt00001]")
    frame = engine.step("click[< prev]")
    assert "Page 0 (Total results: 14) [SEP] Next >" in frame.observation and "< prev" not in frame.clickables


def test_a_value_under_two_names_belongs_to_the_last_one() -> None:
    values = [{"value": "m"}]
    shop = shop_of([product("SHIRT00001", customization_options={"Fit": values, "Size": values})])
    engine = Engine(shop, shirt_goal())
    frame = [engine.step(action) for action in ("search[shirt]", "click[shirt00001]", "click[m]")][-1]
    assert engine.options == {"size": "m"} and frame.clickables.count("m") == 1


def test_white_space_shows_as_the_original_shows_it() -> None:
    page = Page((Text("a "), Text(""), Text("  "), Text(" \n "), Text("\xa0")))
    assert page.observation() == "a [SEP]  [SEP] "
    assert page.rich_observation("", ()) == "a \n \n\xa0\n"


def test_options_are_escaped_on_the_last_page() -> None:
    options = {"Color": [{"value": "R&B <'é'>"}]}
    engine = Engine(shop_of([product("SHIRT00001", customization_options=options)]), shirt_goal())
    for action in ("search[shirt]", "click[shirt00001]", "click[r&b <'é'>]"):
        engine.step(action)
    shown = engine.step("click[buy now]").observation.split(" [SEP] ")
    text = shown[shown.index("options") + 1]
    assert text == '{"color": "r\\u0026b \\u003c\\u0027\\u00e9\\u0027\\u003e"}'
    assert json.loads(text) == {"color": "r&b <'é'>"}

from __future__ import annotations

from typing import Any

import pytest
from webshop_helpers import product, shirt_goal

from envs.webshop.fuzzy import token_set_ratio
from envs.webshop.reward import (
    TitledProduct,
    basic_colour,
    count_attributes,
    count_options,
    match_types,
    score_purchase,
)


@pytest.mark.parametrize(
    ("left", "right", "ratio"),
    [
        ("essential oil", "essential oils", 96),  # "oil" | "oils": 2 * 13 / 27
        ("cool powder snow", "powder snow", 100),  # one side has no rest
        ("RED-rug", "rug, red!", 100),
        ("abc", "abd", 67),  # 2 * 2 / 6
        ("red mug", "blue mug", 67),  # "red" to "blue" takes 5 edits of 7 + 8 letters with "mug"
        ("", "red", 0),
        ("café", "caf", 100),  # é vanishes
        ("under_score", "under score", 100),
    ],
)
def test_texts_are_alike_as_the_fuzzy_library_says(left: str, right: str, ratio: int) -> None:
    assert token_set_ratio(left, right) == token_set_ratio(right, left) == ratio


def test_colours_are_cut_to_the_first_basic_one() -> None:
    colours = [
        "",
        "black forest",
        "violet lavender",
        "steelivy fuchsia",
        "123alabaster",
        "titanium",
        "webshop",
    ]
    expected = ["", "black", "lavender", "fuchsia", "alabaster", "tan", "webshop"]
    assert [basic_colour(colour) for colour in colours] == expected


def test_attributes_count_if_close_or_word_for_word_in_a_text() -> None:
    essential = product(
        "A",
        {"attributes": ["essential oils", "light weight"]},
        name="Dead Skin Scrub",
        small_description=["Tea tree scent"],
        full_description="Pure Peppermint.",
    )
    assert (
        count_attributes(["essential oil", "dead skin", "tea tree", "peppermint", "sugar free"], essential)
        == 4
    )


def test_named_options_are_compared_as_pairs_and_listed_ones_as_they_are() -> None:
    assert count_options({"color": "black", "size": "large"}, ["black", "large"]) == 2
    assert count_options({"size": "x-large"}, ["large"]) == 1  # its words are among those of the pair
    assert count_options({"size": "large"}, ["x-large"]) == 0
    # The chosen value is cut to "black"; the pair is no exact colour and stays "color black137".
    assert count_options({"color": "black137"}, ["black137"]) == 0
    assert count_options(["black137"], ["black137"]) == 1
    assert count_options(["deep black", "jet black"], ["black rock"]) == 2
    assert count_options({}, ["red"]) == 0 and count_options({"color": "red"}, []) == 0


def titled(nouns: str, **changes: Any) -> TitledProduct:
    return TitledProduct(product("A", **changes), tuple(nouns.split()))


def test_product_types_are_told_by_query_category_and_title_nouns() -> None:
    wanted = titled("cotton shirt")
    other = {"query": "mugs", "product_category": "Kitchen › Mugs"}
    same = match_types(wanted, wanted)
    assert (same.factor, same.query_match, same.category_match, same.title_score) == (1.0, True, True, 1.0)
    assert match_types(titled("shirt", **other), wanted).factor == 1.0
    long_wanted = titled("a b c d e f g h i shirt")
    assert match_types(titled("shirt", **other), long_wanted).factor == 0.5
    assert match_types(titled("shirt"), long_wanted).factor == 1.0
    longer_wanted = titled("a b c d e f g h i j shirt")
    assert match_types(titled("shirt"), longer_wanted).factor == 0.1
    assert match_types(titled("mug"), wanted).factor == 0.0
    # A repeated noun counts twice among those wanted and once among those shared.
    assert match_types(titled("shirt"), titled("shirt shirt")).title_score == 0.5
    assert match_types(titled("shirt", **other), titled("")).factor == 0.5
    shelves = {"query": "mugs", "product_category": "Shirts › Men › Sale"}
    assert match_types(titled("cotton", **shelves), wanted).category_match


def test_a_score_is_what_is_met_over_what_is_asked_for() -> None:
    shirt = titled("shirt")
    full = score_purchase(shirt_goal(), shirt, shirt, 30.0, ["red"])
    assert full.total == 1.0 and full.parts == {
        "r_type": 1.0,
        "r_att": 1.0,
        "w_att": 1 / 3,
        "query_match": True,
        "category_match": True,
        "title_score": 1.0,
        "r_option": 1.0,
        "w_option": 1 / 3,
        "r_price": True,
        "w_price": 1 / 3,
    }
    goal = shirt_goal(attributes=("machine wash", "wool"), options={"color": "red", "size": "small"})
    part = score_purchase(goal, shirt, shirt, 30.01, ["red"])
    assert part.total == pytest.approx(2 / 5)
    other = titled("shirt", query="mugs", product_category="Kitchen")
    far = score_purchase(shirt_goal(), titled("a b c d e f g h i shirt"), other, 9.0, [])
    assert far.total == pytest.approx(0.5 * 2 / 3)
    no_options = score_purchase(shirt_goal(options={}), shirt, shirt, 9.0, ["red"])
    assert no_options.total == 1.0 and "r_option" not in no_options.parts

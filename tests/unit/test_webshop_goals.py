from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from recordings import origin, recordings
from webshop_helpers import product, shirt_goal, shop_of

from envs.webshop.data_files import embedded_catalogue, find_files, load_catalogue
from envs.webshop.goals import NO_PRICE_LIMIT, human_goals, sampled_prices, synthetic_goals
from envs.webshop.oracle import NoPlanError, plan
from envs.webshop.products import Instruction
from envs.webshop.provider import make_provider
from envs.webshop.reachability import choice_for, reachable_on_own_product
from envs.webshop.shop import Shop
from envs.webshop.splits import split_goals

WANTED = {"attributes": ["wool"], "instruction": "Find me wool", "instruction_attributes": ["wool"]}
SIZES = {"Size": [{"value": "s"}, {"value": "m"}], "Color": [{"value": "red"}]}


def test_a_price_is_its_own_or_drawn_between_two_in_any_order() -> None:
    stream = random.Random(3)
    expected = random.Random(3).uniform(20.0, 10.0)
    assert list(sampled_prices([(5.0,), (20.0, 10.0)], stream)) == [5.0, expected]


def test_synthetic_goals_are_all_combinations_of_options_by_name() -> None:
    priced = [(product("A", WANTED, customization_options=SIZES), 16.0), (product("B"), 16.0)]
    goals = synthetic_goals(priced, random.Random(0)).goals
    limit = max(random.Random(0).sample([20.0, 30.0, 40.0, 50.0], 2))
    assert {json.dumps(goal.options) for goal in goals} == {
        '{"color": "red", "size": "s"}',
        '{"color": "red", "size": "m"}',
    }
    assert {goal.instruction_text for goal in goals} == {
        f"Find me wool with color: red, and size: {size}, and price lower than {limit:.2f} dollars"
        for size in "sm"
    }
    assert all(goal.price_upper == limit and goal.weight == 0.5 for goal in goals)


def test_weights_are_the_mean_rarity_of_the_attributes() -> None:
    both = {"attributes": [], "instruction": "x", "instruction_attributes": ["wool", "warm"]}
    priced = [(product("A", WANTED, customization_options=None), 5.0), (product("B", both), 5.0)]
    weights = {goal.asin: goal.weight for goal in synthetic_goals(priced, random.Random(0)).goals}
    assert weights == {"A": pytest.approx(1 / 3), "B": pytest.approx((1 / 3 + 1 / 2) / 2)}


def test_people_s_goals_list_values_and_need_attributes() -> None:
    asked = product("A")
    instructions = (
        Instruction("i want it.", ("wool",), ("red", "m")),
        Instruction("i want it.", (), ("red",)),
    )
    found = human_goals([(with_instructions(asked, instructions), 985.0)], random.Random(0))
    assert found.num_without_attributes == 1
    (goal,) = found.goals
    assert (goal.instruction_text, goal.options, goal.price_upper) == (
        "i want it",
        ("red", "m"),
        NO_PRICE_LIMIT,
    )


def with_instructions(asked, instructions):
    values = {name: getattr(asked, name) for name in asked.__dataclass_fields__}
    return type(asked)(**values | {"human_instructions": instructions})


def test_goals_of_a_value_listed_twice_have_different_ids() -> None:
    twice = {"Size": [{"value": "s"}, {"value": "S"}]}
    goals = synthetic_goals(
        [(product("A", WANTED, customization_options=twice), 5.0)], random.Random(0)
    ).goals
    assert len({goal.goal_id for goal in goals}) == len(goals) == 2


def test_goals_are_the_same_in_every_process() -> None:
    script = (
        "from envs.webshop.provider import make_provider; p = make_provider({});"
        "print(*(p.task_set(split).content_hash for split in ('train', 'valid', 'test')))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "1"},
        cwd=Path(__file__).resolve().parents[2],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    provider = make_provider({})
    here = [provider.task_set(split).content_hash for split in ("train", "valid", "test")]
    assert elsewhere.stdout.split() == here


def test_another_seed_gives_other_prices_and_other_ids() -> None:
    catalogue = embedded_catalogue()
    first, second = (Shop.open(catalogue, price_seed=seed).goals(human=False).goals for seed in (0, 1))
    assert len(first) == len(second)
    assert {goal.goal_id for goal in first} != {goal.goal_id for goal in second}


def test_no_product_is_a_goal_in_two_splits() -> None:
    goals = Shop.open(embedded_catalogue()).goals(human=False).goals
    splits = split_goals(goals, "disjoint")
    products = [{goal.asin for goal in part} for part in splits.values()]
    assert sum(map(len, splits.values())) == len(goals)
    assert len(set.union(*products)) == sum(map(len, products))
    assert min(map(len, splits.values())) >= 100


def test_the_other_protocols_cut_by_position() -> None:
    goals = [shirt_goal(asin=f"P{number}") for number in range(2000)]
    original, verl_agent = split_goals(goals, "original"), split_goals(goals, "verl_agent")
    assert {name: (part[0].asin, len(part)) for name, part in original.items()} == {
        "test": ("P0", 500),
        "valid": ("P500", 1000),
        "train": ("P1500", 500),
    }
    assert {name: (part[0].asin, len(part)) for name, part in verl_agent.items()} == {
        "valid": ("P0", 500),
        "train": ("P500", 1500),
    }


def test_a_goal_that_is_in_two_splits_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"goal 'SHIRT00001-\w+' is in both splits 'test' and 'valid'"):
        split_goals([shirt_goal()] * 600, "original")


def test_a_goal_is_unreachable_if_no_choice_of_options_meets_it() -> None:
    options = {"Color": [{"value": "black137"}, {"value": "red"}], "Size": [{"value": "m"}]}
    shop = shop_of([product("SHIRT00001", customization_options=options)])
    shirt = shop.product(0)
    reachable = shirt_goal(options={"color": "red", "size": "m"})
    unreachable = shirt_goal(options={"color": "black137", "size": "m"})
    assert choice_for(reachable, shirt) == {"color": "red", "size": "m"}
    assert choice_for(unreachable, shirt) is None
    assert choice_for(shirt_goal(options=("m", "black")), shirt) == {"color": "black137", "size": "m"}
    assert choice_for(shirt_goal(options=("red", "black")), shirt) is None
    assert choice_for(shirt_goal(options=()), shirt) == {}
    assert reachable_on_own_product(reachable, shop) and not reachable_on_own_product(unreachable, shop)
    assert not reachable_on_own_product(shirt_goal(attributes=("wool",), options={}), shop)
    with pytest.raises(NoPlanError, match="cannot be met in full"):
        plan(shop, unreachable)


@pytest.mark.parametrize("folder", recordings("webshop"), ids=origin)
def test_the_fallback_for_title_nouns_makes_no_goal_unreachable(folder: Path) -> None:
    files = find_files(folder, "small")
    with_nouns = Shop.open(load_catalogue(files))
    without = Shop.open(load_catalogue(type(files)(files.products, files.annotations, files.human, None)))
    goals = with_nouns.goals(human=False).goals
    sample = goals[:: max(len(goals) // 300, 1)]
    assert [reachable_on_own_product(goal, without) for goal in sample] == [
        reachable_on_own_product(goal, with_nouns) for goal in sample
    ]

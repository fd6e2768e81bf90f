from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from webshop_helpers import shirt_goal, shirt_shop

from envs.base import PromptParts, Turn, assert_disjoint
from envs.registry import make_provider as make_registered_provider
from envs.webshop import data_files
from envs.webshop.env import SEARCH_ACTION, WebshopEnv
from envs.webshop.oracle import plan
from envs.webshop.prompt import estimate_tokens, trim_actions, trim_observation
from envs.webshop.provider import make_provider
from tools.make_webshop_catalogue import main as make_catalogue

EMBEDDED = Path(data_files.__file__).parent / "data" / data_files.EMBEDDED_FILE


def shirt_env(**arguments: Any) -> WebshopEnv:
    settings: dict[str, Any] = {"reward": "binary", "success_reward": 10.0} | arguments
    env = WebshopEnv(shirt_shop(), {"shirt": shirt_goal()}.__getitem__, **settings)
    env.reset(options={"task_id": "shirt"})
    return env


def test_the_products_that_ship_with_the_package_are_small_and_made_by_the_tool(tmp_path: Path) -> None:
    made = tmp_path / "made.xz"
    assert make_catalogue(["--out", str(made), "--seed", "0"]) == 0
    assert made.read_bytes() == EMBEDDED.read_bytes()
    assert EMBEDDED.stat().st_size < 1_000_000
    items = json.loads(lzma.decompress(EMBEDDED.read_bytes()))["items"]
    assert len(items) >= 300 and len({item["category"] for item in items}) >= 5


def test_the_generated_products_are_the_default() -> None:
    provider = make_registered_provider("webshop", {})
    sets = [provider.task_set(split) for split in ("train", "valid", "test")]
    assert_disjoint(*sets)
    assert len(sets[0]) > 1000 and min(map(len, sets)) > 100
    assert len({task.task_type for task in sets[0].tasks}) == 6
    assert len({task_set.content_hash for task_set in sets}) == 3


@pytest.mark.parametrize("human", [False, True])
def test_every_reachable_goal_can_be_bought_for_a_full_score(human: bool) -> None:
    provider = make_provider({"human_goals": human})
    env = provider.make_env()
    unreachable = set(provider.unreachable_goals("valid"))
    tasks = [task for task in provider.task_set("valid").tasks if task.task_id not in unreachable]
    assert len(tasks) >= 30
    for task in tasks:
        env.reset(options={"task_id": task.task_id})
        *before, last = (env.step(action) for action in plan(provider.shop, provider.goal(task.task_id)))
        assert all(info["action_valid"] and reward == 0.0 and not done for _, reward, done, _, info in before)
        assert last[1:4] == (10.0, True, False) and last[4]["success"]
        assert last[4]["metrics"] == {"task_score": 1.0}


def test_goals_can_be_kept_to_few_options_and_to_those_that_can_be_met() -> None:
    provider = make_provider({"max_options": 1, "drop_unreachable": True})
    unfiltered = make_provider({"max_options": 1})
    train = provider.task_set("train")
    assert {len(provider.goal(task.task_id).options) for task in train.tasks} == {0, 1}
    unreachable = provider.unreachable_goals("train")
    assert unreachable and len(train) == len(unfiltered.task_set("train")) - len(unreachable)
    assert len(provider.task_set("valid")) == len(unfiltered.task_set("valid"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"catalog": "small"}, ["env.args.catalog", "did you mean 'catalogue'"]),
        ({"catalogue": "smal"}, ["env.args.catalogue", "'smal'", "did you mean 'small'"]),
        ({"data": "here"}, ["env.args.data", "'here'", "small or full"]),
        ({"protocol": "origin"}, ["env.args.protocol", "did you mean 'original'"]),
        ({"reward": "full"}, ["env.args.reward", "'full'"]),
        ({"success_reward": 0}, ["env.args.success_reward", "greater than 0"]),
        ({"max_options": -1}, ["env.args.max_options"]),
    ],
)
def test_wrong_arguments_are_named_with_their_value_and_what_was_meant(arguments: dict, words: list) -> None:
    with pytest.raises(ValueError) as error:
        make_provider(arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_splits_and_splits_without_goals_are_errors() -> None:
    with pytest.raises(
        ValueError, match="'valid_seen' with env.args.protocol disjoint; did you mean 'valid'"
    ):
        make_provider({}).task_set("valid_seen")
    with pytest.raises(ValueError, match="'test' with env.args.protocol verl_agent"):
        make_provider({"protocol": "verl_agent"}).task_set("test")
    with pytest.raises(ValueError, match="no goal in split 'train': 360 goals in all"):
        make_provider({"protocol": "original", "human_goals": True}).task_set("train")


def test_an_episode_ends_with_the_first_purchase_and_takes_no_step_after_it() -> None:
    env = shirt_env()
    for action in ("search[shirt]", "click[shirt00001]"):
        assert env.step(action)[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step("click[buy now]")
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, False)
    assert info["metrics"] == {"task_score": pytest.approx(2 / 3)} and info["admissible_actions"] == []
    assert info["feedback"].endswith("Your score (min 0.0, max 1.0): 0.67")
    with pytest.raises(RuntimeError):
        env.step("search[shirt]")
    with pytest.raises(KeyError):
        env.reset(options={"task_id": "trousers"})
    with pytest.raises(KeyError):
        env.reset()


def test_the_reward_can_be_the_score() -> None:
    env = shirt_env(reward="score", success_reward=3.0)
    env.step("search[shirt]")
    env.step("click[shirt00001]")
    assert env.step("click[buy now]")[1] == pytest.approx(2.0)


def test_the_task_is_told_once_and_what_a_page_offers_is_admissible() -> None:
    env = shirt_env()
    observation, info = env.reset(options={"task_id": "shirt"})
    assert observation == "WebShop [SEP] Search" and info["admissible_actions"] == [SEARCH_ACTION]
    assert info["task_description"] == shirt_goal().instruction_text and info["task_type"] == "fashion"
    observation, _, _, _, info = env.step(" search[cotton] ")
    assert observation == (
        "Back to Search [SEP] Page 1 (Total results: 1) [SEP] Next > [SEP] SHIRT00001 [SEP] "
        "Plain Cotton Shirt [SEP] $16.0"
    )
    assert info["admissible_actions"] == ["click[back to search]", "click[next >]", "click[shirt00001]"]
    for action in info["admissible_actions"]:
        fresh = shirt_env()
        fresh.step("search[cotton]")
        assert fresh.step(action)[4]["action_valid"]


def test_the_comment_says_what_came_of_an_action() -> None:
    env = shirt_env()
    comments = [
        env.step(action)[4]["feedback"]
        for action in (
            *("buy it", "search[zebra]", "search[mug]", "click[next >]", "search[cotton]"),
            *("click[shirt00001]", "click[red]", "click[red]", "click[description]"),
        )
    ]
    assert comments == [
        "'buy it' is not an admissible action here: nothing happened.",
        "The search found no product.",
        "The search worked: 13 products found.",
        *(comments[3:4]),
        "The search worked: 1 product found.",
        "The action worked: this is Plain Cotton Shirt, $16.0.",
        "The action worked: color is now red.",
        "The action worked but changed nothing: color was red before.",
        "The action worked: Back to Search [SEP] < Prev [SEP] A shirt for every day.",
    ]
    assert comments[3].startswith("The action worked: Back to Search [SEP] Page 2 (Total results: 13)")


def test_the_prompt_begins_with_what_never_changes() -> None:
    provider = make_provider({})
    first = PromptParts("Find me a mug", (), 0, "WebShop [SEP] Search", (SEARCH_ACTION,))
    later = PromptParts("Find me a lamp", (Turn("seen", "click[a\nb]"),), 3, "page", ("click[x]", "click[y]"))
    system, user = provider.messages(first)
    assert provider.messages(later)[0] == system and system["role"] == "system"
    assert all(
        tag in system["content"] for tag in ("<think>", "</think><action>", "search[words]", "click[name]")
    )
    assert user["content"] == (
        "Task: Find me a mug\nYou see: WebShop [SEP] Search\nAdmissible actions: search[<your query>]"
    )
    assert provider.messages(later)[1]["content"] == (
        "Task: Find me a lamp\nTurns so far: 3\nYou saw: seen\nYou did: click[a b]\nYou see: page\n"
        "Admissible actions: click[x], click[y]"
    )
    silent = make_provider({"show_admissible_actions": False})
    assert "dmissible" not in "".join(message["content"] for message in silent.messages(later))


def test_long_pages_lose_their_longest_texts_first() -> None:
    page = " [SEP] ".join(["Back to Search", "word " * 500, "$16.0", "other " * 40])
    assert trim_observation(page, 10_000) == page
    trimmed = trim_observation(page, 200)
    assert estimate_tokens(trimmed) <= 210
    parts = trimmed.split(" [SEP] ")
    assert parts[0] == "Back to Search" and parts[2] == "$16.0" and parts[3] == ("other " * 40)
    assert parts[1].startswith("word word") and parts[1].endswith("word…")


def test_pages_of_very_many_texts_lose_the_middle_and_say_how_much() -> None:
    page = " [SEP] ".join(["Back to Search", *(f"color {number}" for number in range(500)), "Buy Now"])
    trimmed = trim_observation(page, 100).split(" [SEP] ")
    assert trimmed[0] == "Back to Search" and trimmed[-1] == "Buy Now"
    assert f"… {502 - (len(trimmed) - 1)} more …" in trimmed
    assert trim_actions(["click[a]"] * 3, 100) == ("click[a]",) * 3
    assert trim_actions(["click[a]"] * 100, 10) == ("click[a]", "click[a]", "… and 98 more of the page")

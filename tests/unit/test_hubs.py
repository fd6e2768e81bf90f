"""Environments of other packages behind SERL's interface."""

from __future__ import annotations

import random
import signal
import sys
from typing import Any

import pytest

from envs.base import assert_disjoint
from envs.hubs.packages import MissingPackageError
from envs.registry import make_provider
from tools.check_env.episodes import CheckSettings, open_target
from tools.check_env.report import check

COUNTING = {"id": "counting_env:Counting-v0", "description": "Count.", "actions": ["up", "down"]}


def violations(name: str, args: dict[str, Any]) -> list[str]:
    return list(check(open_target(name, args, "train"), CheckSettings(num_episodes=4)).lines())


def test_an_environment_of_gymnasium_keeps_what_serl_is_promised():
    assert violations("gymnasium", COUNTING) == []
    text = {**COUNTING, "actions": [], "options": {"numbered": False}}
    assert violations("gymnasium", text) == []


def test_a_numbered_action_has_a_name_and_another_name_is_no_action():
    env = make_provider("gymnasium", {**COUNTING, "num_train": 5, "num_valid": 5}).make_env()
    seen, info = env.reset(seed=0, options={"task_id": "7"})
    assert (seen[:4], info["admissible_actions"]) == ("0 of", ["up", "down"])
    wanted = int(seen.rpartition(" ")[2])
    _, reward, terminated, _, info = env.step("sideways")
    assert (reward, terminated, info["action_valid"], info["feedback"]) == (
        0.0,
        False,
        False,
        "That is no action here.",
    )
    for _ in range(wanted):
        seen, reward, terminated, _, info = env.step("up")
    assert (reward, terminated, info["success"], info["feedback"]) == (1.0, True, True, "took 1")
    assert seen == f"{wanted} of {wanted}"


def test_the_seeds_of_splits_are_disjoint_and_the_same_again():
    provider = make_provider("gymnasium", {**COUNTING, "num_train": 3, "num_valid": 2, "seed": 10})
    train, valid = provider.task_set("train"), provider.task_set("valid")
    assert [task.task_id for task in train.tasks] == ["10", "11", "12"]
    assert [task.task_id for task in valid.tasks] == ["13", "14"]
    assert_disjoint(train, valid)
    again = make_provider("gymnasium", {**COUNTING, "num_train": 3, "num_valid": 2, "seed": 10})
    assert again.task_set("train").content_hash == train.content_hash
    with pytest.raises(ValueError, match="unknown split 'vald'; did you mean 'valid'"):
        provider.task_set("vald")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"id": "Nothing-v7"}, "env.args.id: 'Nothing-v7'"),
        ({"id": "nowhere:Nothing-v7"}, "env.args.id: 'nowhere:Nothing-v7'"),
        ({"id": "counting_env:Seeing-v0"}, "are no text"),
        ({"actions": ["up"]}, "has 2 actions; name each"),
        ({"options": {"letters": True}}, "env.args.id: 'counting_env:Counting-v0'"),
    ],
)
def test_what_cannot_be_played_as_text_is_told(args: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        make_provider("gymnasium", COUNTING | args)


def test_a_package_that_is_missing_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'serl\[reasoning-gym\]'"):
        make_provider("reasoning_gym", {"datasets": {"leg_counting": {}}})


LEGS = {"datasets": {"leg_counting": {"max_animals": 4}}, "num_train": 20, "num_valid": 10, "seed": 3}


def test_questions_of_reasoning_gym_are_asked_and_scored():
    pytest.importorskip("reasoning_gym", reason="needs the extra reasoning-gym")
    assert violations("reasoning_gym", LEGS) == []
    provider = make_provider("reasoning_gym", LEGS | {"full_reward": 10.0})
    train, valid = provider.task_set("train"), provider.task_set("valid")
    assert (len(train), len(valid), train.tasks[0].task_id) == (20, 10, "leg_counting:0")
    assert_disjoint(train, valid)
    env = provider.make_env()
    seen, info = env.reset(options={"task_id": "leg_counting:21"})
    assert "legs" in seen and info["task_type"] == "leg_counting"
    _, reward, ended, _, info = env.step("no number")
    assert (reward, ended, info["success"], info["metrics"]) == (0.0, True, False, {"score": 0.0})
    answer = info["feedback"].rpartition(" ")[2]
    env.reset(options={"task_id": "leg_counting:21"})
    _, reward, _, _, info = env.step(answer)
    assert (reward, info["success"], info["feedback"]) == (10.0, True, "Right.")


@pytest.mark.parametrize(
    ("datasets", "told"),
    [
        ({"leg_countin": {}}, "did you mean 'leg_counting'"),
        ({"leg_counting": {"min_animals": 99}}, "max_animals"),
    ],
)
def test_generators_that_there_are_not_and_wrong_options_are_told(datasets: dict[str, Any], told: str):
    pytest.importorskip("reasoning_gym", reason="needs the extra reasoning-gym")
    with pytest.raises(ValueError, match=told):
        make_provider("reasoning_gym", LEGS | {"datasets": datasets})


def test_a_game_of_textarena_is_played_by_seed_whatever_others_draw_meanwhile():
    pytest.importorskip("textarena", reason="needs the extra textarena")
    assert violations("textarena", {"game": "GuessTheNumber-v0"}) == []
    provider = make_provider("textarena", {"game": "GuessTheNumber-v0", "num_train": 5, "num_valid": 5})
    env, other = provider.make_env(), provider.make_env()
    random.seed(1)
    seen, info = env.reset(options={"task_id": "3"})
    assert "between 1 and 20" in info["task_description"]
    other.reset(options={"task_id": "4"})
    _, reward, ended, _, info = env.step("no number")
    assert (reward, ended, info["action_valid"]) == (0.0, False, False)
    low, high = 1, 20
    while not ended:
        guess = (low + high) // 2
        seen, reward, ended, _, info = env.step(f"[{guess}]")
        low, high = (guess + 1, high) if "higher" in seen else (low, guess - 1)
    assert (reward, info["success"], "Congratulations" in info["feedback"]) == (1.0, True, True)
    assert random.random() == random.Random(1).random()


@pytest.mark.parametrize(
    ("game", "told"),
    [
        ("GuesTheNumber-v0", "did you mean 'GuessTheNumber-v0'"),
        ("Hangman-v0", "would download NLTK's 'words'"),
        ("TwentyQuestions-v0", "OPENROUTER_API_KEY"),
    ],
)
def test_games_that_cannot_be_played_here_are_told(game: str, told: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("textarena", reason="needs the extra textarena")
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(ValueError, match=told):
        make_provider("textarena", {"game": game})


GUESSING = {"options": {"num_tasks": 8}, "num_valid": 3}


def test_an_environment_of_verifiers_is_checked_step_by_step_and_no_task_held_out_is_trained_on():
    pytest.importorskip("verifiers", reason="needs the extra verifiers")
    assert violations("verifiers:verifiers_environments", GUESSING) == []
    provider = make_provider("verifiers:verifiers_environments", GUESSING)
    train, valid = provider.task_set("train"), provider.task_set("valid")
    assert [task.task_id for task in train.tasks] == [f"train:{index}" for index in range(5)]
    assert [task.task_id for task in valid.tasks] == ["valid:5", "valid:6", "valid:7"]
    assert_disjoint(train, valid)
    env = provider.make_env()
    seen, info = env.reset(options={"task_id": "train:2"})
    assert (seen, info["task_description"]) == ("Guess 2.", "Guess 2.")
    seen, reward, ended, _, info = env.step("1")
    assert (seen, reward, ended, info["feedback"]) == ("higher", 0.0, False, "higher")
    seen, reward, ended, _, info = env.step("2")
    assert (seen, reward, ended, info["success"]) == ("right", 1.0, True, True)
    assert info["metrics"] == {"guessed": 1.0, "num_turns": 2.0}


def test_questions_that_are_trained_on_are_left_out_of_those_that_an_environment_of_verifiers_holds_out():
    pytest.importorskip("verifiers", reason="needs the extra verifiers")
    provider = make_provider("verifiers:verifiers_environments", {"options": {"twice": True}})
    assert [task.task_id for task in provider.task_set("valid").tasks] == ["valid:2"]


@pytest.mark.parametrize(
    ("env_id", "options", "told"),
    [
        ("nobody", {}, "Could not import 'nobody' environment"),
        ("verifiers_environments", {"tasks": 3}, "unexpected keyword argument 'tasks'"),
        ("verifiers_environments", {"download": "hub"}, "would download something, which SERL does not let"),
        ("verifiers_environments", {"download": "web"}, "would download something, which SERL does not let"),
    ],
)
def test_environments_of_verifiers_that_cannot_be_loaded_here_are_told(
    env_id: str, options: dict[str, Any], told: str
):
    pytest.importorskip("verifiers", reason="needs the extra verifiers")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match=told):
        make_provider(f"verifiers:{env_id}", {"options": options})
    assert signal.getsignal(signal.SIGTERM) is handler

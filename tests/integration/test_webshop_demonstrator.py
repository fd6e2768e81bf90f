from __future__ import annotations

import random

import pytest

from envs.webshop.demonstrator import WebshopDemonstrator, best_purchase
from envs.webshop.env import WebshopEnv
from envs.webshop.provider import WebshopProvider, make_provider
from tools.warm_start.__main__ import main as warm_start
from tools.warm_start.demonstrations import DemonstrationSettings, demonstrate


@pytest.fixture(scope="module")
def provider() -> WebshopProvider:
    return make_provider({"show_admissible_actions": False})


def started(provider: WebshopProvider, num_options: int) -> tuple[WebshopEnv, str]:
    unreachable = provider.unreachable_goals("valid")
    task = next(
        task
        for task in provider.task_set("valid").tasks
        if task.task_id not in unreachable and len(provider.goal(task.task_id).options) == num_options
    )
    env = provider.make_env()
    env.reset(options={"task_id": task.task_id})
    return env, task.task_id


def play(
    provider: WebshopProvider, env: WebshopEnv, demonstrator: WebshopDemonstrator, task_id: str
) -> tuple[list[str], bool]:
    observation, info = env.reset(options={"task_id": task_id})
    actions = []
    for _ in range(15):
        shown = demonstrator.act(observation, info)
        actions.append(shown.action)
        observation, _, done, _, info = env.step(shown.action)
        assert info["action_valid"]
        if done:
            break
    return actions, info["success"]


def test_without_detours_nearly_every_reachable_goal_is_met(provider: WebshopProvider) -> None:
    unreachable = set(provider.unreachable_goals("valid"))
    rng, wins = random.Random(0), []
    for task in provider.task_set("valid").tasks:
        if task.task_id not in unreachable:
            env = provider.make_env()
            env.reset(options={"task_id": task.task_id})
            wins.append(play(provider, env, provider.demonstrator(env, rng, 0.0), task.task_id)[1])
    assert sum(wins) / len(wins) > 0.95


def test_detours_are_marked_and_made_up_for(provider: WebshopProvider) -> None:
    env, task_id = started(provider, num_options=2)
    observation, info = env.reset(options={"task_id": task_id})
    assert provider.demonstrator(env, random.Random(1), 1.0).act(observation, info).is_detour
    demonstrator = provider.demonstrator(env, random.Random(1), 0.0)
    env.step("search[pillow]")
    env.step(f"click[{env.shop.product(env.shop.search('pillow')[0]).asin}]")
    observation, _, _, _, info = env.step("click[description]")
    actions = []
    for _ in range(9):
        actions.append(demonstrator.act(observation, info).action)
        observation, _, done, _, info = env.step(actions[-1])
        if done:
            break
    assert info["success"] and actions[0].startswith("search[") and actions[-1] == "click[Buy Now]"


def test_an_action_is_tried_out_in_a_copy_and_judged_by_what_is_left_to_do(provider: WebshopProvider) -> None:
    env, task_id = started(provider, num_options=1)
    demonstrator = provider.demonstrator(env, random.Random(0), 0.0)
    purchase = best_purchase(env.shop, provider.goal(task_id))
    assert demonstrator.try_out(f"search[{purchase.query}]")[1]
    assert demonstrator.try_out("search[zebra]") == ("The search found no product.", False)
    assert env.engine is not None and env.engine.keywords == []
    env.step(f"search[{purchase.query}]")
    for _ in range(purchase.result_page - 1):
        env.step("click[next >]")
    assert demonstrator.try_out(f"click[{purchase.asin}]")[1]
    assert not demonstrator.try_out("click[back to search]")[1]
    env.step(f"click[{purchase.asin}]")
    (value,) = purchase.choice.values()
    feedback, nearer = demonstrator.try_out("click[buy now]")
    assert not nearer and "Your score (min 0.0, max 1.0): 0." in feedback
    assert demonstrator.try_out(f"click[{value}]")[1]
    assert not demonstrator.try_out("click[description]")[1]
    env.step(f"click[{value}]")
    feedback, nearer = demonstrator.try_out("click[buy now]")
    assert nearer and feedback.endswith("Your score (min 0.0, max 1.0): 1.00")


def test_an_option_before_its_turn_brings_the_task_no_nearer(provider: WebshopProvider) -> None:
    env, task_id = started(provider, num_options=2)
    demonstrator = provider.demonstrator(env, random.Random(0), 0.0)
    for action in demonstrator.solution()[:-3]:
        env.step(action)
    first, second = demonstrator.solution()[-3:-1]
    assert demonstrator.best_action() == first
    assert [demonstrator.try_out(action)[1] for action in (first, second)] == [True, False]
    env.step(second)  # as a policy may, and the first one's turn is still to come
    assert [demonstrator.try_out(action)[1] for action in (first, second)] == [True, False]
    env.step(first)
    assert demonstrator.best_action() == "click[Buy Now]"


def test_the_demonstrator_knows_the_best_action_and_a_solution(provider: WebshopProvider) -> None:
    env, task_id = started(provider, num_options=1)
    demonstrator = provider.demonstrator(env, random.Random(0), 0.0)
    assert demonstrator.best_action() == f"search[{best_purchase(env.shop, provider.goal(task_id)).query}]"
    assert demonstrator.solution()[-1] == "click[Buy Now]"
    infos = [env.step(action)[4] for action in demonstrator.solution()]
    assert infos[-1]["success"] and all(info["action_valid"] for info in infos)


def test_inadmissible_actions_do_nothing(provider: WebshopProvider) -> None:
    env, _ = started(provider, num_options=2)
    demonstrator = provider.demonstrator(env, random.Random(0), 0.0)
    for action in ("search[shirt]", "click[next >]"):
        for _ in range(5):
            refused = demonstrator.inadmissible_action({})
            assert refused is not None and not env.copy().step(refused)[4]["action_valid"]
        env.step(action)


def test_demonstrations_name_things_as_the_page_does(provider: WebshopProvider) -> None:
    settings = DemonstrationSettings(num_episodes=10, max_steps=8)
    shown = list(demonstrate(provider, provider.task_set("train").tasks, settings, seed=0))
    assert shown == list(demonstrate(provider, provider.task_set("train").tasks, settings, seed=0))
    assert any(d.response.endswith("<action>click[Buy Now]</action>") for d in shown)
    assert any(d.has_hindsight for d in shown)
    for demonstration in shown:
        action = demonstration.response.partition("<action>")[2]
        if action.startswith("click["):
            name = action.removeprefix("click[").removesuffix("]</action>")
            assert name in demonstration.messages[-1]["content"]


def test_a_copy_of_an_episode_goes_its_own_way(provider: WebshopProvider) -> None:
    env, task_id = started(provider, num_options=1)
    purchase = best_purchase(env.shop, provider.goal(task_id))
    env.step(f"search[{purchase.query}]")
    copied = env.copy()
    copied.step("click[back to search]")
    assert env.engine is not None and copied.engine is not None
    assert env.engine.keywords and not copied.engine.keywords
    assert env.step("click[next >]")[4]["action_valid"]


def test_an_environment_without_a_demonstrator_cannot_be_warm_started(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "guess.yaml"
    path.write_text(
        "name: guess\nmodel: {path: embedded:tiny_alfworld}\nenv: {name: 'envs.example:make_provider'}\n"
        "evaluation: {split: valid}\n"
    )
    assert warm_start([str(path), "--out", str(tmp_path / "policy")]) == 2
    assert "has no demonstrator" in caplog.text
    assert not (tmp_path / "policy").exists()

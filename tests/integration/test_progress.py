"""Progress in the games that ship with SERL: what leads to success, and what does not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from envs.base import DemonstratingProvider, MeasuringProvider
from envs.registry import make_provider
from serl.rollout.progress import judged_steps


@pytest.mark.parametrize(
    ("name", "args", "idle", "inadmissible"),
    [
        ("alfworld", {"max_receptacles": 6}, "look", "take the moon 1 from shelf 1"),
        ("webshop", {}, "search[nothing of the kind]", "click[the moon]"),
    ],
)
def test_every_action_of_the_best_way_is_progress_and_no_other_is(
    name: str, args: dict[str, Any], idle: str, inadmissible: str
) -> None:
    provider = make_provider(name, args)
    assert isinstance(provider, DemonstratingProvider) and isinstance(provider, MeasuringProvider)
    num_solved = 0
    for task in provider.task_set("train").tasks[:8]:
        env = provider.make_env()
        env.reset(options={"task_id": task.task_id})
        demonstrator = provider.demonstrator(env, random.Random(0), 0.0)
        actions: list[str] = []
        ended, info = False, {"success": False}
        while not ended:
            action = demonstrator.best_action()
            assert action is not None and len(actions) < 30
            actions.append(action)
            _, _, ended, _, info = env.step(action)
        played = [idle, inadmissible, *actions]
        responses = [f"<action>{action}</action>" for action in played]
        kinds = [step.kind for step in judged_steps(provider, task.task_id, responses, [None] * len(played))]
        # Some goals of the shop cannot be met in full; then no purchase is a success.
        num_solved += info["success"]
        last = "progress" if info["success"] else "idle"
        assert kinds == ["idle", "inadmissible", *["progress"] * (len(actions) - 1), last]
    assert num_solved >= 4

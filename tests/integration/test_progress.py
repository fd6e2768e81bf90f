"""Progress in the games that ship with SERL: what leads to success, and what does not."""

from __future__ import annotations

import random
from typing import Any

import pytest
from trajectories import make_step, make_trajectory

from envs.base import DemonstratingProvider, MeasuringProvider
from envs.registry import make_provider
from serl.batch.controls import ProgressJudge
from serl.batch.group import finish
from serl.config import ExperimentConfig
from serl.rollout.progress import judged_steps
from serl.run.preflight.data import open_tasks
from serl.types import Step, Task, TrajectoryGroup


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


def test_with_perfect_credit_progress_counts_for_more_in_a_success_and_for_less_in_a_failure() -> None:
    settings: dict[str, Any] = {
        "name": "control",
        "model": {"path": "embedded:tiny_alfworld"},
        "env": {"args": {"data": "embedded", "max_receptacles": 6}},
        "advantage": {"args": {"normalize_std": False}},
        "hindsight": {
            "control": "progress",
            "weight_clip": 0.5,
            "mixing_lambda": 1.0,
            "lambda_decay_steps": 4,
        },
    }
    experiment = ExperimentConfig.model_validate(settings)
    provider = make_provider(experiment.env.name, experiment.env.args)
    assert isinstance(provider, DemonstratingProvider)
    task = provider.task_set("train").tasks[0]
    env = provider.make_env()
    env.reset(options={"task_id": task.task_id})
    best = provider.demonstrator(env, random.Random(0), 0.0).best_action()

    def step(action: str) -> Step:
        return make_step(action=action, response_text=f"<action>{action}</action>", next_observation=None)

    success = make_trajectory([step("look"), step(str(best))], 10.0, rollout_index=0, task=Task(task.task_id))
    failure = make_trajectory([step(str(best)), step("look")], 0.0, rollout_index=1, task=Task(task.task_id))
    finished = finish(TrajectoryGroup("g", success.task, [success, failure]), experiment)
    judge = ProgressJudge.of(experiment)
    assert judge is not None
    # The group's mean return is 5: ±5 for each step, then times 1 ± 0.5, and with λ = 0.5 times 1 ± 0.25.
    assert finished.rows.advantages.tolist() == [5.0, 5.0, -5.0, -5.0]
    assert judge.weigh(finished, 0).rows.advantages.tolist() == [2.5, 7.5, -2.5, -7.5]
    assert judge.weigh(finished, 2).rows.advantages.tolist() == [3.75, 6.25, -3.75, -6.25]
    assert judge.weigh(finished, 4) is finished


def test_perfect_credit_needs_an_environment_that_can_tell() -> None:
    settings: dict[str, Any] = {
        "name": "control",
        "model": {"path": "embedded:tiny_alfworld"},
        "env": {"name": "envs.example:make_provider"},
        "evaluation": {"split": "valid", "num_tasks": 1},
        "hindsight": {"control": "progress"},
    }
    experiment = ExperimentConfig.model_validate(settings)
    with pytest.raises(TypeError, match="its provider has no `progress`"):
        ProgressJudge.of(experiment)
    _, findings = open_tasks(experiment)
    (found,) = [finding for finding in findings if finding.verdict != "ok"]
    assert found.text.startswith("hindsight.control = progress contradicts env.name = 'envs.example")

"""The shipped arms differ in what they are about and in nothing that costs steps or updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serl.config.load import load_experiment
from tools.sweep.runs import find_arms

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
ABLATION = EXPERIMENTS / "ablation"
# A folder of arms, what they are compared with, the sections they may differ in, and their number.
FOLDERS = (
    (ABLATION, ABLATION / "_base.yaml", {"hindsight", "advantage", "model", "loss"}, 14),
    (ABLATION / "staleness", ABLATION / "grpo.yaml", {"training"}, 4),
    (EXPERIMENTS / "prompt_arms", EXPERIMENTS / "prompt_arms" / "window.yaml", {"model", "rollout"}, 2),
    (EXPERIMENTS / "webshop_arms", EXPERIMENTS / "webshop_arms" / "_base.yaml", {"hindsight", "learner"}, 8),
    (EXPERIMENTS / "alfworld_arms", EXPERIMENTS / "alfworld_tiny.yaml", {"hindsight", "logging"}, 3),
)


def sections_that_differ(path: Path, base: Path) -> dict[str, Any]:
    own, of_base = (load_experiment(file).model_dump() for file in (path, base))
    return {name: own[name] for name in own if own[name] != of_base[name] and name != "name"}


@pytest.mark.parametrize(("folder", "base", "sections", "count"), FOLDERS, ids=[f[0].name for f in FOLDERS])
def test_arms_differ_from_their_base_in_the_sections_they_are_about_only(
    folder: Path, base: Path, sections: set[str], count: int
):
    arms = find_arms([folder])
    assert len(arms) == count
    for arm in arms:
        assert set(sections_that_differ(arm.path, base)) <= sections, arm.name
    settings = [load_experiment(arm.path).model_dump(exclude={"name"}) for arm in arms]
    assert all(one != other for index, one in enumerate(settings) for other in settings[:index])


@pytest.mark.parametrize(
    ("folder", "arm", "control"),
    [
        ("ablation", "distil", "no_evidence"),
        ("ablation", "distil", "other_group"),
        ("ablation", "action_probability", "no_evidence"),
        ("ablation", "combination", "no_evidence"),
        ("webshop_arms", "action_probability", "no_evidence"),
        ("webshop_arms", "combination", "no_evidence"),
    ],
)
def test_a_control_differs_from_its_arm_in_what_the_teacher_reads_alone(folder: str, arm: str, control: str):
    own, controlled = (
        load_experiment(EXPERIMENTS / folder / f"{name}.yaml").hindsight.model_dump()
        for name in (arm, f"{arm}_{control}")
    )
    assert own | {"control": control} == controlled


def test_the_weights_of_a_success_are_compared_with_the_most_that_weights_can_give():
    oracle, success = (
        load_experiment(ABLATION / f"{name}.yaml").hindsight.model_dump()
        for name in ("oracle", "reweight_success")
    )
    assert {name for name in oracle if oracle[name] != success[name]} == {"mode", "sources", "control"}


def test_the_staleness_arms_differ_in_the_bound_alone():
    for bound in (0, 1, 2, 4):
        arm = load_experiment(ABLATION / "staleness" / f"staleness_{bound}.yaml").training
        grpo = load_experiment(ABLATION / "grpo.yaml").training
        assert arm == grpo.model_copy(update={"max_staleness": bound})

"""The shipped arms differ in what they are about and in nothing that costs steps or updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serl.config.load import load_experiment
from tools.sweep.runs import find_arms

ABLATION = Path(__file__).resolve().parents[1] / "experiments" / "ablation"
FOLDERS = {
    ABLATION: {"hindsight"},
    ABLATION / "exploratory": {"hindsight", "advantage"},
    ABLATION / "staleness": {"training"},
}


def sections_that_differ(path: Path, base: Path) -> dict[str, Any]:
    own, of_base = (load_experiment(file).model_dump() for file in (path, base))
    return {name: own[name] for name in own if own[name] != of_base[name] and name != "name"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_arms_differ_from_their_base_in_the_sections_they_are_about_only(folder: Path):
    arms = find_arms([folder])
    assert len(arms) >= 4
    for arm in arms:
        base = ABLATION / ("grpo.yaml" if "staleness" in folder.name else "_base.yaml")
        assert set(sections_that_differ(arm.path, base)) <= FOLDERS[folder], arm.name
    settings = [load_experiment(arm.path).model_dump(exclude={"name"}) for arm in arms]
    assert all(one != other for index, one in enumerate(settings) for other in settings[:index])


def test_the_control_differs_from_its_arm_in_the_shuffle_alone():
    centered, shuffled = (
        load_experiment(ABLATION / f"success_or_feedback_centered{suffix}.yaml").hindsight.model_dump()
        for suffix in ("", "_shuffled")
    )
    assert {name for name in centered if centered[name] != shuffled[name]} == {"shuffle"}


def test_the_staleness_arms_differ_in_the_bound_alone():
    for bound in (0, 1, 2, 4):
        arm = load_experiment(ABLATION / "staleness" / f"staleness_{bound}.yaml").training
        grpo = load_experiment(ABLATION / "grpo.yaml").training
        assert arm == grpo.model_copy(update={"max_staleness": bound})

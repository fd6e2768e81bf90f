"""The README's estimator, loss and source, as files of somebody's own, in one real update each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import learner_group, sampled_groups, save_tiny_policy, started_update

from serl.config.errors import ConfigError
from serl.config.load import load_experiment

README = Path(__file__).resolve().parents[2] / "README.md"
MODULES = {
    "my_estimator": "register_estimator",
    "my_loss": "register_policy_loss",
    "my_source": "register_source",
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three examples."""
    folder = tmp_path_factory.mktemp("own")
    for name, decorator in MODULES.items():
        (code,) = re.findall(rf"```python\n([^`]*@{decorator}[^`]*)```", README.read_text(encoding="utf-8"))
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def on_the_path(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(modules)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def update(model_dir: Path, rewards: list[float], **sections: Any) -> dict[str, float]:
    group = learner_group(model_dir, **sections)
    groups = sampled_groups(model_dir, [rewards], steps_per_trajectory=1)
    groups[0].trajectories[1].steps[0].action_valid = False
    for trajectory in groups[0].trajectories:
        trajectory.steps[0].anchor = "the same room"
    result = group.poll_update(started_update(group, groups), timeout_s=60.0)
    assert result is not None
    return result.metrics


def test_the_readmes_estimator_bounds_advantages(model_dir: Path) -> None:
    # Of ten the only success has (10 - 1) / sqrt(10) = 2.85, the others -0.32.
    own = {"estimator": "my_estimator:bounded_grpo", "args": {"bound": 1.5}}
    rewards = [10.0, *[0.0] * 9]
    metrics = update(model_dir, rewards, advantage=own, env={"invalid_action_penalty": 0.0})
    assert metrics["bounded_fraction"] == pytest.approx(0.1)
    assert metrics["advantage_mean"] == pytest.approx((1.5 - 9 / 10**0.5) / 10, rel=1e-5)


def test_the_readmes_loss_trains(model_dir: Path) -> None:
    own = {"name": "my_loss:cispo", "args": {"max_weight": 3.0}}
    metrics = update(model_dir, [10.0, 0.0], loss=own)
    assert metrics["clip_fraction"] == 0.0 and metrics["num_optimizer_steps"] == 1
    assert metrics["grad_norm"] > 0.0


def test_the_readmes_source_gives_evidence_where_an_action_was_invalid(model_dir: Path) -> None:
    own = {"enabled": True, "sources": ["my_source:recovery"], "lambda_decay_steps": 0}
    metrics = update(model_dir, [10.0, 0.0], hindsight=own)
    assert metrics["evidence_share/recovery"] == metrics["evidence_share/any"] == 0.5
    assert metrics["num_teacher_prompts"] == 1


def test_options_of_ones_own_are_checked_like_every_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: test\nmodel: {path: embedded:tiny_alfworld}\n"
        "advantage: {estimator: 'my_estimator:bounded_grpo', args: {bond: 1.5}}\n"
        "loss: {name: 'my_loss:cispo', args: {max_weight: -1}}\n"
        "hindsight: {sources: ['my_source:recovery'], args: {'my_source:recovery': {max_steps: two}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    text = str(caught.value)
    assert "advantage.args.bond = 1.5" in text and "did you mean advantage.args.bound?" in text
    assert "loss.args.max_weight = -1" in text and "must be greater than 0" in text
    assert "hindsight.args.my_source:recovery.max_steps = 'two'" in text and "whole number" in text


def test_a_learner_in_another_process_finds_the_loss_of_ones_own(model_dir: Path, modules: Path) -> None:
    import ray

    environment = {"env_vars": {"PYTHONPATH": str(modules)}}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        group = learner_group(model_dir, loss={"name": "my_loss:cispo"}, learner={"num_learners": 1})
        groups = sampled_groups(model_dir, [[10.0, 0.0]])
        handle = started_update(group, groups)
        result = None
        while result is None:
            result = group.poll_update(handle, timeout_s=1.0)
        assert torch.tensor(result.metrics["grad_norm"]).isfinite() and result.metrics["grad_norm"] > 0.0
        group.shutdown()
    finally:
        ray.shutdown()

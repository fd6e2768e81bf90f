"""What a learner saves, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import learner_group, sampled_groups, update, weights
from transformers import AutoModelForCausalLM

from serl.durable_files import digest_of
from serl.types import TrajectoryGroup

TEACHER = {"enabled": True, "mixing_lambda": 0.5, "lambda_decay_steps": 0}


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    return sampled_groups(model_dir, [[10.0, 0.0, 0.0], [0.0, 0.0, 0.0], [10.0, 10.0, 0.0]])


def test_a_run_continues_from_a_checkpoint_bit_for_bit(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "hindsight": TEACHER,
        "learner": {"num_minibatches": 2, "lr_warmup_updates": 5},
    }
    original = learner_group(model_dir, **options)
    update(original, groups, 0)
    update(original, groups, 1)
    original.save(tmp_path, timeout_s=60.0)
    expected = update(original, groups, 2)

    resumed = learner_group(model_dir, **options)
    resumed.load(tmp_path, timeout_s=60.0)
    metrics = update(resumed, groups, 2)
    for name in ("loss", "grad_norm", "teacher_weight_mean", "lr", "entropy"):
        assert metrics[name] == expected[name]
    after = weights(original)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(resumed).items())


def test_transformers_loads_the_saved_policy(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = learner_group(model_dir)
    update(group, groups)
    group.save(tmp_path, timeout_s=60.0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    for name, tensor in weights(group).items():
        assert torch.equal(loaded[name], tensor)
    assert torch.equal(loaded["lm_head.weight"], loaded["model.embed_tokens.weight"])
    assert (tmp_path / "policy" / "chat_template.jinja").is_file()


def test_a_big_policy_is_saved_in_pieces_with_an_index(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = learner_group(model_dir)
    update(group, groups)
    monkeypatch.setattr("serl.learner.state._MAX_SHARD_BYTES", 50_000)
    expected_bytes = group.saved_bytes()
    written = group.save(tmp_path, timeout_s=60.0)
    assert len(list((tmp_path / "policy").glob("model-*.safetensors"))) > 1
    found = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written == {str(file.relative_to(tmp_path)): digest_of(file) for file in found}
    tensor_bytes = sum(file.stat().st_size for file in found if file.suffix == ".safetensors")
    assert expected_bytes < tensor_bytes < 1.2 * expected_bytes, "more than headers was not counted"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(group).items())
    learner_group(model_dir).load(tmp_path, timeout_s=60.0)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "learner" / "learner.json").unlink(), "learner"),
        (lambda folder: (folder / "policy" / "model.safetensors").write_bytes(b"nonsense"), "cannot be read"),
        (lambda folder: (folder / "learner" / "exp_avg.safetensors").unlink(), "lacks"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    model_dir: Path,
    groups: list[TrajectoryGroup],
    tmp_path: Path,
    damage: Callable[[Path], None],
    complaint: str,
) -> None:
    group = learner_group(model_dir)
    update(group, groups)
    group.save(tmp_path, timeout_s=60.0)
    damage(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        group.load(tmp_path, timeout_s=60.0)


def test_the_saved_learner_file_is_plain_json(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER)
    update(group, groups)
    group.save(tmp_path, timeout_s=60.0)
    record = json.loads((tmp_path / "learner" / "learner.json").read_text())
    assert record == {"has_teacher": True, "num_optimizer_steps": 1, "num_consecutive_skipped": 0}
    suffixes = {file.suffix for file in (tmp_path / "learner").iterdir()}
    assert suffixes == {".json", ".safetensors"}

"""What a learner saves, and what becomes of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import byte_tokenizer, learner_group, sampled_groups, update, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from serl.durable_files import digest_of
from serl.manifest import complete_checkpoint
from serl.types import TrajectoryGroup

SHARD = "shard-00001-model-00001-of-00001.safetensors"
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


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_checkpoint_that_is_complete_is_on_the_disk_with_every_file_and_folder(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    group = learner_group(model_dir, model={"path": str(model_dir), "lora": lora})
    complete_checkpoint(tmp_path, group.save(tmp_path, timeout_s=60.0), {"weights_seq_no": 1})
    found = [tmp_path, *tmp_path.rglob("*")]
    assert {"tokenizer.json", "policy", "learner.json", "algorithm.json"} <= {path.name for path in found}
    assert [path for path in found if path.stat().st_ino not in synced] == []


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
    monkeypatch.setattr("serl.learner.saving._MAX_FILE_BYTES", 50_000)
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


def _rename_a_tensor(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"model.norm.weight", b"model.nerm.weight"))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "learner" / "learner.json").unlink(), "learner"),
        (lambda folder: (folder / "learner" / "weights" / SHARD).write_bytes(b"nonsense"), "cannot be read"),
        (lambda folder: (folder / "learner" / "exp_avg" / SHARD).unlink(), "lacks"),
        (lambda folder: shutil.rmtree(folder / "learner" / "exp_avg_sq"), "cannot be read"),
        (lambda folder: _rename_a_tensor(folder / "learner" / "weights" / SHARD), "lacks 1 tensors"),
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
    assert record == {
        "is_sharded": True,
        "lora": None,
        "has_teacher": True,
        "num_optimizer_steps": 1,
        "num_consecutive_skipped": 0,
    }
    suffixes = {file.suffix for file in (tmp_path / "learner").rglob("*") if file.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_an_update_after_the_copy_does_not_change_what_is_written(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER | {"teacher_sync_interval": 1})
    update(group, groups, 0)
    saved = weights(group)
    group.save(tmp_path / "at once", timeout_s=60.0)
    write = group.start_save(tmp_path / "during", timeout_s=60.0)
    update(group, groups, 1)
    assert any(not torch.equal(tensor, saved[name]) for name, tensor in weights(group).items())
    files = write()
    assert len(files) > 5
    for name in (name for name in files if name.endswith(".safetensors")):
        during, at_once = load_file(tmp_path / "during" / name), load_file(tmp_path / "at once" / name)
        assert during.keys() == at_once.keys()
        assert all(torch.equal(tensor, at_once[key]) for key, tensor in during.items()), name
    policy = load_file(tmp_path / "during" / "policy" / "model.safetensors")
    assert all(torch.equal(policy[name], tensor) for name, tensor in saved.items())


def test_the_policy_is_saved_in_its_own_dtype_and_resumed_in_that_of_training(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    halves = tmp_path / "halves"
    AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).save_pretrained(halves)
    byte_tokenizer().save_pretrained(halves)
    group = learner_group(halves)
    update(group, groups)
    group.save(tmp_path / "saved", timeout_s=60.0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "policy", dtype="auto").state_dict()
    resumed = learner_group(halves)
    resumed.load(tmp_path / "saved", timeout_s=60.0)
    after = weights(resumed)
    rounded = 0
    for name, tensor in weights(group).items():
        assert loaded[name].dtype == torch.bfloat16 and torch.equal(loaded[name], tensor.bfloat16())
        assert after[name].dtype == torch.float32 and torch.equal(after[name], tensor)
        rounded += not torch.equal(tensor.bfloat16().float(), tensor)
    assert rounded > 0


def test_a_checkpoint_of_whole_tensors_is_resumed_as_before(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER)
    update(group, groups)
    group.save(tmp_path, timeout_s=60.0)
    expected = update(group, groups, 1)
    learner = tmp_path / "learner"
    for part in ("weights", "teacher", "exp_avg", "exp_avg_sq"):
        tensors = load_file(learner / part / SHARD)
        shutil.rmtree(learner / part)
        if part != "weights":
            first, *rest = tensors
            save_file({first: tensors[first]}, learner / f"{part}-00001-of-00002.safetensors")
            save_file({name: tensors[name] for name in rest}, learner / f"{part}-00002-of-00002.safetensors")
    record = json.loads((learner / "learner.json").read_text())
    del record["is_sharded"]
    (learner / "learner.json").write_text(json.dumps(record))
    resumed = learner_group(model_dir, hindsight=TEACHER)
    resumed.load(tmp_path, timeout_s=60.0)
    assert update(resumed, groups, 1)["grad_norm"] == expected["grad_norm"]
    after = weights(group)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(resumed).items())

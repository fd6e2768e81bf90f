"""Two processes save what they share, and one or two resume from it; one of them cannot write."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from learner_helpers import learner_config, save_tiny_policy
from torch import Tensor
from torch.distributed.tensor import DTensor

from serl.durable_files import digest_of
from serl.learner.optimizer import OptimizerStep, make_optimizer
from serl.learner.parallel import fill_from_first_learner, full_tensors, shard_module
from serl.learner.rl_module import CausalLMModule
from serl.learner.saving import StateSaver
from serl.learner.state import LearnerState, LearnerStateError, load_state
from serl.models.weights import load_model, named_weights

CPU = torch.device("cpu")


def policy_of(model_dir: Path, num_learners: int) -> CausalLMModule:
    spec = learner_config(model_dir, learner={"num_learners": num_learners}).get_default_rl_module_spec()
    spec.inference_only = False
    module = spec.build()
    assert isinstance(module, CausalLMModule)
    if num_learners > 1:
        shard_module(module, torch.float32, CPU)
        model = load_model(str(model_dir)) if dist.get_rank() == 0 else None
        fill_from_first_learner(named_weights(module.model), named_weights(model) if model else {})
    return module


def state_of(model_dir: Path, num_learners: int) -> LearnerState:
    policy, teacher = policy_of(model_dir, num_learners), policy_of(model_dir, num_learners)
    settings = learner_config(model_dir).experiment.learner
    optimizer = make_optimizer(list(policy.parameters()), settings)
    return LearnerState(policy, teacher.requires_grad_(False), optimizer, OptimizerStep(optimizer, 1.0))


def train(state: LearnerState, seed: int) -> None:
    """One step along gradients that are drawn, the same ones whoever has which part of them."""
    torch.manual_seed(seed)
    for weight in named_weights(state.policy.model).values():
        drawn = torch.randn(weight.shape)
        weight.grad = torch.zeros_like(weight)
        _copy(weight.grad, drawn)
    state.optimizer_step.apply(0.1)


def _copy(target: Tensor, whole: Tensor) -> None:
    if isinstance(target, DTensor):
        per_rank = -(-whole.shape[0] // 2)
        target.to_local().copy_(whole[dist.get_rank() * per_rank :][:per_rank])
    else:
        target.copy_(whole)


def whole_parts(state: LearnerState) -> dict[str, dict[str, Tensor]]:
    found = state.parts()
    return {part: {name: t.clone() for name, t in full_tensors(found[part])} for part in found}


def require_equal(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for part, tensors in expected.items():
        assert found[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[part][name], tensor), f"{part}: {name}"


def in_two_processes(rank: int, model_dir: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    group = dist.new_group(backend="gloo")
    state = state_of(model_dir, 2)
    resume(rank, state, folder, group)
    fail_to_write(rank, state, folder, group)
    save_while_training(rank, state, folder, group)
    dist.destroy_process_group()


def save_while_training(rank: int, state: LearnerState, folder: Path, group: Any) -> None:
    """The checkpoint is of two updates; more come before it is written, and while it is."""
    train(state, seed=2)
    saver, expected = StateSaver(CPU, group), whole_parts(state)
    saver.copy(state)
    train(state, seed=3)
    digests: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: digests.update(saver.write(folder / "saved")))
    thread.start()
    for seed in range(4, 14):
        train(state, seed)
        dist.barrier()
    thread.join(60.0)
    # Every learner has written its own files, and the first one the policy's folder too.
    for name, digest in digests.items():
        assert digest == digest_of(folder / "saved" / name)
    shards = {Path(name).name.split("-model")[0] for name in digests if name.endswith("-00001.safetensors")}
    assert shards == {f"shard-0000{rank + 1}"}
    assert any(name.startswith("policy/") for name in digests) == (rank == 0)
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, set(digests), group)
    if rank == 0:
        found = {file for file in (folder / "saved").rglob("*") if file.is_file()}
        assert {str(file.relative_to(folder / "saved")) for file in found} == gathered[0] | gathered[1]
        torch.save(expected, folder / "expected.pt")
    assert load_state(folder / "saved", state, group)
    require_equal(whole_parts(state), expected)


def resume(rank: int, state: LearnerState, folder: Path, group: Any) -> None:
    assert load_state(folder / "by one", state, group)
    found, record = whole_parts(state), state.record()
    if rank == 0:
        torch.save((found, record), folder / "found.pt")


def fail_to_write(rank: int, state: LearnerState, folder: Path, group: Any) -> None:
    """The second one's file cannot be made; both hear of it, and the next copy is written."""
    saver = StateSaver(CPU, group)
    if rank == 1:
        (folder / "refused/learner/weights/shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)
    dist.barrier()
    saver.copy(state)
    with pytest.raises(OSError, match="Is a directory") as told:
        saver.write(folder / "refused")
    (folder / f"told {rank}").write_text(str(told.value))
    saver.copy(state)
    assert saver.write(folder / "again")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def alone(model_dir: Path) -> LearnerState:
    state = state_of(model_dir, 1)
    train(state, seed=1)
    return state


@pytest.fixture(scope="module")
def folder(model_dir: Path, alone: LearnerState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both have left: ``by one`` was there before, ``saved`` is what they saved together."""
    folder = tmp_path_factory.mktemp("checkpoints")
    saver = StateSaver(CPU, None)
    saver.copy(alone)
    saver.write(folder / "by one")
    processes.spawn(in_two_processes, (model_dir, folder), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return folder


def test_what_one_saved_two_resume_bit_for_bit(alone: LearnerState, folder: Path) -> None:
    found, record = torch.load(folder / "found.pt")
    require_equal(found, whole_parts(alone))
    assert record == alone.record() and record["num_optimizer_steps"] == 1


def test_what_two_saved_beside_training_one_resumes_bit_for_bit(model_dir: Path, folder: Path) -> None:
    expected = torch.load(folder / "expected.pt")
    state = state_of(model_dir, 1)
    assert load_state(folder / "saved", state)
    require_equal(whole_parts(state), expected)
    assert state.record()["num_optimizer_steps"] == 2
    # Half of the weights would otherwise stay as they were built.
    (folder / "saved/learner/weights/shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(LearnerStateError, match="lacks a part of"):
        load_state(folder / "saved", state)


def test_both_hear_that_one_cannot_write(folder: Path) -> None:
    for rank in (0, 1):
        assert "shard-00002" in (folder / f"told {rank}").read_text()

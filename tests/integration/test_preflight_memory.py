"""What `serl-run --check` says of memory: shared memory, models of a hub, what a layer keeps."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportAttributeAccessIssue]

from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.models.resolve import EMBEDDED_POLICIES
from serl.models.shape import ModelShape
from serl.models.sizes import num_weights
from serl.run.preflight import examine_machine
from serl.run.preflight import memory as memory_module
from serl.run.preflight.memory import examine_memory
from serl.run.preflight.memory_plan import saved_bytes_per_token

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A policy that a test may spoil."""
    return shutil.copytree(EMBEDDED_POLICIES / "tiny_alfworld", tmp_path / "model")


def missing(*overrides: str) -> list[str]:
    found = examine_machine(load_experiment(QUICKSTART, overrides))
    return [finding.text for finding in found if finding.verdict == "missing"]


@pytest.fixture
def free_mib(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What is free in shared memory, for a test to set."""
    free = SimpleNamespace(mib=0.0)
    usage = lambda path: SimpleNamespace(free=int(free.mib * 2**20))  # noqa: E731
    monkeypatch.setattr(memory_module.shutil, "disk_usage", usage)
    yield free


def test_shared_memory_is_estimated_in_the_type_that_is_broadcast(model: Path, free_mib: SimpleNamespace):
    file = model / "model.safetensors"
    weights = load_file(file)
    count = sum(weight.numel() for weight in weights.values())
    for stored in (torch.float32, torch.bfloat16):
        save_file({name: weight.to(stored) for name, weight in weights.items()}, file)
        assert num_weights(str(model)) == count
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            overrides = [f"model.path={model}", f"model.dtype={dtype}"]
            free_mib.mib = (3 * size * count - 1) / 2**20
            (told,) = missing(*overrides)
            assert told.startswith(f"/dev/shm: {3 * size * count / 1e9:.2f} GB for 3 versions of the weights")
            free_mib.mib = (3 * size * count + 1) / 2**20
            assert missing(*overrides) == []


@pytest.fixture
def hub_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ExperimentConfig:
    """An experiment with a model of the hub, of which nothing is here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return load_experiment(QUICKSTART, ["model.path=nobody/nothing"])


def test_the_memory_of_a_hub_model_is_planned_from_its_config_alone(
    hub_model: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
):
    config = EMBEDDED_POLICIES / "tiny_alfworld" / "config.json"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *arguments, **options: str(config))
    host, shared_memory, disk = [found.text for found in examine_memory(hub_model)]
    assert host.startswith("host: 0.7 GB on the first learner's node")
    assert shared_memory == "/dev/shm: 0.01 GB for 3 versions of the weights"
    assert disk == "disk: 0.04 GB for 2 checkpoints of 0.01 GB and the next one"


@pytest.mark.parametrize("error", [LookupError("no such protocol"), RuntimeError("no home")])
def test_whatever_the_hubs_client_raises_the_hub_sent_nothing(
    error: Exception, hub_model: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
):
    def failing(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", failing)
    started = time.monotonic()
    (found,) = examine_memory(hub_model)
    assert found.text.endswith("the hub did not send its config.json")
    assert time.monotonic() - started < memory_module.HUB_SECONDS


def test_a_hub_that_is_silent_is_not_waited_for(hub_model: ExperimentConfig, monkeypatch: pytest.MonkeyPatch):
    answer = threading.Event()

    def silent(*arguments: Any, **options: Any) -> str:
        answer.wait()
        raise ConnectionError("the test is over")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", silent)
    monkeypatch.setattr(memory_module, "HUB_SECONDS", 0.1)
    (found,) = examine_memory(hub_model)
    answer.set()
    assert found.verdict == "ok" and found.text.startswith(
        "not known: nobody/nothing is not here, and the hub"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_learners", [1, 2])
def test_a_layer_keeps_for_its_backward_pass_what_is_planned(dtype: str, num_learners: int):
    """Counted where autograd saves it; a sharded model is bfloat16 throughout, another one under autocast."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=4
    )
    overrides = [f"model.dtype={dtype}", f"learner.num_learners={num_learners}"]
    planned = saved_bytes_per_token(ModelShape.of(config.to_dict()), load_experiment(QUICKSTART, overrides))
    lower, sharded = dtype == "bfloat16", num_learners > 1
    model = LlamaForCausalLM(config)
    if lower and sharded:
        model.bfloat16()
    layer, ids = model.model.layers[1], torch.zeros(2, 512, dtype=torch.long)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    layer.register_forward_pre_hook(lambda *arguments: hooks.__enter__())
    layer.register_forward_hook(lambda *arguments: hooks.__exit__())
    with torch.autocast("cpu", torch.bfloat16, enabled=lower and not sharded):
        output = model(input_ids=ids, use_cache=False)
    copies = 2 * sum(weight.numel() for weight in layer.parameters()) if lower and not sharded else 0
    counted = sum(size for storage, size in saved.items() if storage not in known) - copies
    assert planned == pytest.approx(counted / ids.numel(), rel=0.05)
    del output

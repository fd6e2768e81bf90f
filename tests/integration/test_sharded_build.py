"""Two processes build one policy: what each of them holds on the way, and whether it is the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from learner_helpers import byte_tokenizer, learner_config
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from serl.learner.parallel import fill_from_first_learner, full_tensors, shard_module
from serl.learner.rl_module import CausalLMModule
from serl.models.weights import load_model, named_weights

NUM_LAYERS, WIDTH = 6, 768


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        tie_word_embeddings=request.param,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def memory_kib(name: str) -> int:
    """A figure of this process: VmRSS, what it holds, or VmHWM, the most it has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def build(rank: int, model_dir: str, rendezvous: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    spec = learner_config(Path(model_dir), learner={"num_learners": 2}).get_default_rl_module_spec()
    spec.inference_only = False
    module = spec.build()
    assert isinstance(module, CausalLMModule)
    assert all(parameter.device.type == "meta" for parameter in module.parameters())
    num_parameters = len(list(module.parameters()))
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the most it has held counts from here on
    before = memory_kib("VmRSS")
    shard_module(module, torch.float32, torch.device("cpu"))
    whole = named_weights(load_model(model_dir, "sdpa")) if rank == 0 else {}
    fill_from_first_learner(named_weights(module.model), whole)
    peak_kib = memory_kib("VmHWM") - before
    whole = whole or named_weights(load_model(model_dir, "sdpa"))
    # A tied weight that were two would be sent to every learner twice.
    assert num_parameters == len(whole)
    for name, tensor in full_tensors(named_weights(module.model)):
        assert torch.equal(tensor, whole[name]), name
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    num_bytes = sum(tensor.nbytes for tensor in whole.values())
    results.put((rank, peak_kib * 1024, num_bytes))
    dist.barrier()
    dist.destroy_process_group()


def test_a_learner_holds_its_shards_and_never_the_whole_policy(model_dir: Path, tmp_path: Path) -> None:
    context = processes.get_context("spawn")
    results = context.SimpleQueue()
    processes.spawn(build, (str(model_dir), str(tmp_path / "meet"), results), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    found = {rank: (peak, num_bytes) for rank, peak, num_bytes in (results.get(), results.get())}
    # The first learner reads the files; what the other one holds is what a GPU would.
    peak, num_bytes = found[1]
    one_layer = num_bytes / NUM_LAYERS
    assert num_bytes / 2 <= peak <= 1.3 * num_bytes / 2 + one_layer

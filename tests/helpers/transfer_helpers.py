"""vLLM's own receiving end without GPUs: its models, loaders and packed broadcast, over queues for NCCL."""

from __future__ import annotations

import contextlib
import queue
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from serving_helpers import experiment, make_policy, save_tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM
from vllm import EngineArgs
from vllm.config import set_current_vllm_config
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed import parallel_state
from vllm.distributed.weight_transfer import nccl_common, packed_tensor
from vllm.model_executor.model_loader import get_model

from serl.serving.engine import EngineThread, LoadReport
from serl.serving.engine_options import engine_arguments
from serl.serving.transfer.landing import UpdateError
from serl.serving.transfer.nccl import worker_init_info
from serl.serving.transfer.receiver import BACKEND, PolicyWeightReceiver
from serl.serving.transfer.sender import Weights
from serl.serving.weights_folder import claim_folder, release_folder

WAIT_S = 60.0
# Smaller than the embeddings: an update of the tiny policy travels in several buffers.
BUFFER_BYTES = 2**15
# vLLM has one model a process: what it notes of layers that are being loaded is not made for threads.
_LOADING = threading.RLock()
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
Named = list[tuple[str, Tensor]]


class QueueGroup:
    """What a broadcast needs of vLLM's NCCL communicator. Like NCCL's, it ends when all have received."""

    disabled = False

    def __init__(self, rank: int, inboxes: dict[int, queue.Queue[Tensor]]) -> None:
        self.rank = rank
        self.inboxes = inboxes
        self.num_broadcasts = 0
        self.destroyed = False

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        self.num_broadcasts += 1
        if self.rank == src:
            for inbox in self.inboxes.values():
                inbox.put(tensor.clone())
            for inbox in self.inboxes.values():
                with inbox.all_tasks_done:
                    assert inbox.all_tasks_done.wait_for(lambda i=inbox: not i.unfinished_tasks, WAIT_S)
        else:
            inbox = self.inboxes[self.rank]
            tensor.copy_(inbox.get(timeout=WAIT_S))
            inbox.task_done()

    def destroy(self) -> None:
        self.destroyed = True


class Rendezvous:
    """Groups that have been joined, by their ports; joining returns when all ranks have."""

    def __init__(self) -> None:
        self.groups: dict[int, dict[int, QueueGroup]] = {}
        self._meetings: dict[int, tuple[threading.Barrier, dict[int, queue.Queue[Tensor]]]] = {}
        self._lock = threading.Lock()

    def join(
        self, master_address: str, master_port: int, rank: int, world_size: int, device: Any
    ) -> QueueGroup:
        with self._lock:
            new = threading.Barrier(world_size), {i: queue.Queue() for i in range(1, world_size)}
            meeting, inboxes = self._meetings.setdefault(master_port, new)
            group = QueueGroup(rank, inboxes)
            assert self.groups.setdefault(master_port, {}).setdefault(rank, group) is group, (
                f"two of rank {rank}"
            )
        meeting.wait(WAIT_S)
        return group


@pytest.fixture
def rendezvous(monkeypatch: pytest.MonkeyPatch) -> Rendezvous:
    """Queues for NCCL, nothing for CUDA: all else of a broadcast is vLLM's and SERL's."""
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, number: (stream,) * number)
    monkeypatch.setattr(packed_tensor, "DEFAULT_PACKED_BUFFER_SIZE_BYTES", BUFFER_BYTES)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    joined = Rendezvous()
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", joined.join)
    return joined


class Replica:
    """The engine thread of a replica, with ``receivers`` in the place of vLLM's workers."""

    def __init__(self, name: str, receivers: list[PolicyWeightReceiver]) -> None:
        self.name = name
        self.receivers = receivers
        for rank, receiver in enumerate(receivers):
            receiver.parallel_config.rank = rank
        self.calls: list[str] = []
        self.versions: list[str] = []
        self.died: Future[BaseException] = Future()
        self._group: dict[str, Any] | None = None
        core = SimpleNamespace(
            scheduler=SimpleNamespace(set_pause_state=lambda state: None),
            batch_queue=None,
            pause_scheduler=lambda mode, clear_cache: None,
            resume_scheduler=lambda: None,
        )
        engine: Any = SimpleNamespace(
            engine_core=SimpleNamespace(engine_core=core),
            collective_rpc=self._call_workers,
            set_weight_version=self.versions.append,
            has_unfinished_requests=lambda: False,
            vllm_config=SimpleNamespace(lora_config=None),
        )
        self.engine = EngineThread(lambda: engine, self.died.set_result)
        self.engine.wait_until_built(WAIT_S)

    def load(self, update: dict[str, Any]) -> LoadReport:
        """As `PolicyReplica` does; raises what ends the replica."""
        if update["kind"] == "nccl" and update["group"] != self._group:
            self.engine.join_transfer_group(worker_init_info(update["group"], self.name)).result(WAIT_S)
            self._group = update["group"]
        return self.engine.load_weights(update, update["weights_seq_no"]).result(WAIT_S)

    @property
    def num_workers(self) -> int:
        return len(self.receivers)

    def mismatch(self, policy: LlamaForCausalLM) -> float:
        """The largest, over workers, difference to ``policy``."""
        return max(model_mismatch(receiver.model, policy) for receiver in self.receivers)

    def _call_workers(self, method: str, args: tuple[Any, ...] = ()) -> None:
        self.calls.append(method)
        method = {"init_weight_transfer_engine": "init_transfer_engine"}.get(method, method)
        # vLLM packs weights on CPU for the number of threads of whoever loads them; tests compute with one.
        with ThreadPoolExecutor(len(self.receivers), initializer=lambda: torch.set_num_threads(1)) as workers:
            for answer in [workers.submit(_call, one, method, args) for one in self.receivers]:
                answer.result(WAIT_S)


def _call(receiver: PolicyWeightReceiver, method: str, args: tuple[Any, ...]) -> None:
    # Workers must receive and join at the same time.
    alone = method in ("start_weight_update", "finish_weight_update")
    with _LOADING if alone else contextlib.nullcontext():
        getattr(receiver, method)(*args)


def broadcast(sender: Any, update: dict[str, Any], *replicas: Replica, timeout_s: float = WAIT_S) -> None:
    """All ``replicas`` load ``update`` while the learner sends it; raises what the first of them raised."""
    with ThreadPoolExecutor(len(replicas)) as threads:
        loads = [threads.submit(replica.load, update) for replica in replicas]
        sender.transmit(timeout_s, lambda: None)
        for load in loads:
            load.result(WAIT_S)


def model_mismatch(model: Any, policy: Any) -> float:
    """The largest difference between what the layers of vLLM's ``model`` and of ``policy`` answer."""
    torch_rng = torch.Generator().manual_seed(0)
    config = policy.config
    narrow = torch.randn(3, config.hidden_size, generator=torch_rng)
    wide = torch.randn(3, config.intermediate_size, generator=torch_rng)
    ids = torch.arange(config.vocab_size)
    differences = []

    def compare(answer: Tensor, expected: Tensor) -> None:
        differences.append(float((answer - expected).abs().max()))

    with torch.no_grad():
        compare(model.model.embed_tokens(ids), policy.model.embed_tokens(ids))
        compare(model.compute_logits(narrow)[:, : config.vocab_size], policy.lm_head(narrow))
        compare(model.model.norm.weight, policy.model.norm.weight)
        for layer, expected in zip(model.model.layers, policy.model.layers, strict=True):
            attention, mlp = expected.self_attn, expected.mlp
            qkv = [attention.q_proj(narrow), attention.k_proj(narrow), attention.v_proj(narrow)]
            compare(layer.self_attn.qkv_proj(narrow)[0], torch.cat(qkv, dim=1))
            compare(layer.self_attn.o_proj(narrow)[0], attention.o_proj(narrow))
            gate_up = [mlp.gate_proj(narrow), mlp.up_proj(narrow)]
            compare(layer.mlp.gate_up_proj(narrow)[0], torch.cat(gate_up, dim=1))
            compare(layer.mlp.down_proj(wide)[0], mlp.down_proj(wide))
            compare(layer.input_layernorm.weight, expected.input_layernorm.weight)
            compare(layer.post_attention_layernorm.weight, expected.post_attention_layernorm.weight)
    return max(differences)


@contextlib.contextmanager
def receivers(model_dir: Path, number: int) -> Iterator[list[PolicyWeightReceiver]]:
    """``number`` receivers, each with a model of its own in this process."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        configs = [_config(model_dir) for _ in range(number)]
        with set_current_vllm_config(configs[0]):
            parallel_state.init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
            parallel_state.ensure_model_parallel_initialized(1, 1)
            try:
                yield [_receiver(config) for config in configs]
            finally:
                parallel_state.destroy_model_parallel()
                parallel_state.destroy_distributed_environment()


def _config(model_dir: Path) -> Any:
    arguments = engine_arguments(experiment(), str(model_dir), seed=0)
    transfer = WeightTransferConfig(backend=BACKEND)
    return EngineArgs(**arguments, weight_transfer_config=transfer).create_engine_config()


def _receiver(config: Any) -> PolicyWeightReceiver:
    model: Any = get_model(vllm_config=config)
    load_weights = model.load_weights

    def load_alone(named_tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
        with _LOADING:
            return load_weights(named_tensors)

    model.load_weights = load_alone
    return PolicyWeightReceiver(config.weight_transfer_config, config, torch.device("cpu"), model)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PolicyWeightReceiver]]:
    """Receivers of vLLM that tests use again: an update may begin anew whatever became of the last."""
    folder = tmp_path_factory.mktemp("policy")
    make_policy(0).save_pretrained(folder)
    save_tokenizer(folder)
    with receivers(folder, 4) as made:
        yield made


@pytest.fixture
def application() -> Iterator[str]:
    name = f"serl-{uuid.uuid4().hex[:8]}"
    claim_folder(name)
    yield name
    release_folder(name)


def named(seed: int) -> Named:
    return [(name, weight.detach()) for name, weight in make_policy(seed).named_parameters()]


def weights(seed: int) -> Weights:
    return Weights.of(named(seed))


def assert_dies(replica: Replica, update: dict[str, Any], why: str) -> None:
    """Loading ``update`` ends the replica, which goes on claiming what it served before."""
    before = replica.engine.weights_seq_no
    with pytest.raises(UpdateError, match=why):
        replica.load(update)
    assert isinstance(replica.died.result(WAIT_S), UpdateError)
    assert replica.engine.weights_seq_no == before and replica.versions == [str(before)]

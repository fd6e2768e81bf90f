"""A replica of two workers on CPU, and a learner that broadcasts to them through gloo in the place of NCCL.

Importing this module, as vLLM's workers do for `GlooWorkerExtension`, puts gloo in NCCL's place.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
from serving_helpers import FREE, PROMPT, experiment, make_policy, reference_logprobs
from torch import Tensor
from transformers import LlamaForCausalLM
from vllm import EngineArgs, LLMEngine
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import nccl_common, packed_tensor

from serl.config import ExperimentConfig, LoRASection
from serl.models.lora import adapter_weights, add_adapters
from serl.serving.engine import EngineThread
from serl.serving.engine_options import engine_arguments
from serl.serving.messages import Answer, make_request
from serl.serving.transfer import receiver  # registers the receiving end in a worker
from serl.serving.transfer.nccl import NCCLSender, worker_init_info
from serl.serving.transfer.sender import Weights
from serl.serving.transfer.shared_memory import SharedMemorySender
from serl.serving.weights_folder import claim_folder, release_folder
from serl.types import Sampling

WAIT_S = 120.0
_STREAM = SimpleNamespace(synchronize=lambda: None)


class GlooGroup:
    """What a broadcast needs of vLLM's NCCL communicator."""

    disabled = False

    def __init__(
        self, master_address: str, master_port: int, rank: int, world_size: int, device: Any
    ) -> None:
        self._group: Any = stateless_init_torch_distributed_process_group(
            master_address, master_port, rank, world_size, "gloo", timeout=timedelta(seconds=WAIT_S)
        )

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        self._group = None


class GlooWorkerExtension(receiver.WorkerExtension):
    """Nothing to call: naming this class makes each worker import this module."""


packed_tensor._get_streams = lambda device_idx, num_buffers: (_STREAM,) * num_buffers  # type: ignore[assignment]
nccl_common.stateless_init_process_group = GlooGroup  # type: ignore[assignment]
torch.accelerator.current_device_index = lambda: 0
torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore[assignment]


def prepare_process() -> None:
    """Nothing here has a GPU."""
    import ray

    torch.cuda.current_stream = lambda: _STREAM  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda: None
    ray.util.get_node_ip_address = lambda: "127.0.0.1"


class TwoWorkers:
    """The engine thread of a replica of two workers, which serves ``experiment``."""

    def __init__(self, experiment: ExperimentConfig, model_dir: str) -> None:
        def build() -> LLMEngine:
            arguments = engine_arguments(experiment, model_dir, seed=0) | {
                "tensor_parallel_size": 2,
                "distributed_executor_backend": "mp",
                "worker_extension_cls": "gloo_transfer.GlooWorkerExtension",
            }
            transfer = WeightTransferConfig(backend=receiver.BACKEND)
            return LLMEngine.from_engine_args(EngineArgs(**arguments, weight_transfer_config=transfer))

        self.deaths: list[BaseException] = []
        self.engine = EngineThread(build, self.deaths.append)
        self.engine.wait_until_built(WAIT_S * 2)

    def ask(self, sampling: Sampling) -> queue.SimpleQueue[list[Answer]]:
        answers: queue.SimpleQueue[list[Answer]] = queue.SimpleQueue()
        self.engine.submit([make_request(0, PROMPT, sampling)], answers.put)
        return answers

    def mismatch(self, policy: Any) -> float:
        """The largest difference between log-probs of sampled tokens here and of ``policy``."""
        (answer,) = self.ask(FREE).get(timeout=WAIT_S)
        expected = reference_logprobs(policy, PROMPT, answer.token_ids)
        return float((torch.tensor(answer.logprobs) - expected).abs().max())

    def broadcast(self, sender: NCCLSender, weights: Weights, version: int) -> None:
        update = sender.prepare(weights, version, {"replica": 2})

        def load() -> None:
            if version == 1:
                self.engine.join_transfer_group(worker_init_info(update["group"], "replica")).result(WAIT_S)
            self.engine.load_weights(update, version).result(WAIT_S)

        loading = threading.Thread(target=load)
        loading.start()
        sender.transmit(WAIT_S, lambda: None)
        loading.join(WAIT_S)

    def error_of(self, update: dict[str, Any], version: int) -> str:
        try:
            self.engine.load_weights(update, version).result(WAIT_S)
        except Exception as error:
            return str(error)
        return ""


def main(model_dir: str) -> None:
    """Samples before and after two broadcasts; prints the largest mismatches with transformers as JSON."""
    prepare_process()
    replica = TwoWorkers(experiment(), model_dir)
    found: dict[str, Any] = {"before": replica.mismatch(make_policy(0))}
    application = f"serl-gloo-{os.getpid()}"
    claim_folder(application)
    try:
        sender = NCCLSender(application)
        for version in (1, 2):
            named = [(name, weight.detach()) for name, weight in make_policy(version).named_parameters()]
            replica.broadcast(sender, Weights.of(named), version)
            found[f"after_{version}"] = replica.mismatch(make_policy(version))
            found[f"old_after_{version}"] = replica.mismatch(make_policy(version - 1))
            found[f"version_{version}"] = replica.engine.weights_seq_no
        found["error"] = replica.error_of(sender.prepare(Weights.of(named[:-1]), 3, {"replica": 2}), 3)
        found["version_3"] = replica.engine.weights_seq_no
    finally:
        release_folder(application)
    print(json.dumps(found), flush=True)
    # Threads of the engine and of gloo would keep the process.
    os._exit(0)


def adapted_policy(lora: LoRASection, seed: int) -> LlamaForCausalLM:
    """The policy that replicas begin with, and adapters of ``seed`` that change much."""
    policy = make_policy(0)
    add_adapters(policy, lora, ["policy"], seed)
    torch.manual_seed(seed)
    for weight in adapter_weights(policy, "policy").values():
        torch.nn.init.normal_(weight, std=0.2)
    return policy


def main_of_adapters(model_dir: str) -> None:
    """As `main`, of adapters alone: by a broadcast, while a request is under way, and from a file."""
    prepare_process()
    lora = LoRASection(
        rank=4,
        alpha=8,
        target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        broadcast="adapters",
    )
    settings = experiment()
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"lora": lora})})
    replica = TwoWorkers(settings, model_dir)
    found: dict[str, Any] = {"before": replica.mismatch(make_policy(0))}
    policies = [make_policy(0), adapted_policy(lora, 1), adapted_policy(lora, 2)]
    application = f"serl-gloo-{os.getpid()}"
    claim_folder(application)
    try:
        sender = NCCLSender(application)
        under_way = replica.ask(replace(FREE, max_tokens=120))
        replica.broadcast(sender, Weights.of(adapter_weights(policies[1], "policy").items()), 1)
        (answer,) = under_way.get(timeout=WAIT_S)
        found["spans"] = [version for _, _, version in answer.spans]
        expected = [reference_logprobs(policy, PROMPT, answer.token_ids) for policy in policies]
        found["in_flight"] = [
            float((torch.tensor(answer.logprobs) - expected[version])[start:end].abs().max())
            for start, end, version in answer.spans
        ]
        found["after_1"] = replica.mismatch(policies[1])
        found["old_after_1"] = replica.mismatch(policies[0])
        files = SharedMemorySender(application)
        adapters = list(adapter_weights(policies[2], "policy").items())
        update = files.prepare(Weights.of(adapters), 2, {})
        found["num_bytes"] = update["num_bytes"]
        replica.engine.load_weights(update, 2).result(WAIT_S)
        found["after_2"] = replica.mismatch(policies[2])
        found["old_after_2"] = replica.mismatch(policies[1])
        found["error"] = replica.error_of(files.prepare(Weights.of(adapters[:-1]), 3, {}), 3)
        found["version_3"] = replica.engine.weights_seq_no
    finally:
        release_folder(application)
    print(json.dumps(found), flush=True)
    os._exit(0)

"""A replica of two workers on CPU, and a learner that broadcasts to them through gloo in the place of NCCL.

Importing this module, as vLLM's workers do for `GlooWorkerExtension`, puts gloo in NCCL's place.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import nccl_common, packed_tensor

from serl.serving.transfer import receiver  # registers the receiving end in a worker

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


def main(model_dir: str) -> None:
    """Samples before and after two broadcasts; prints the largest mismatches with transformers as JSON."""
    import json

    from serving_helpers import FREE, PROMPT, experiment, make_policy, reference_logprobs
    from vllm import EngineArgs, LLMEngine
    from vllm.config.weight_transfer import WeightTransferConfig

    from serl.serving.engine import EngineThread
    from serl.serving.engine_options import engine_arguments
    from serl.serving.messages import Answer, make_request
    from serl.serving.transfer.nccl import NCCLSender, worker_init_info
    from serl.serving.transfer.sender import Weights
    from serl.serving.weights_folder import claim_folder, release_folder

    torch.cuda.current_stream = lambda: _STREAM  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda: None
    import ray

    ray.util.get_node_ip_address = lambda: "127.0.0.1"

    def build() -> LLMEngine:
        arguments = engine_arguments(experiment(), model_dir, seed=0) | {
            "tensor_parallel_size": 2,
            "distributed_executor_backend": "mp",
            "worker_extension_cls": "gloo_transfer.GlooWorkerExtension",
        }
        transfer = WeightTransferConfig(backend=receiver.BACKEND)
        return LLMEngine.from_engine_args(EngineArgs(**arguments, weight_transfer_config=transfer))

    deaths: list[BaseException] = []
    engine = EngineThread(build, deaths.append)
    engine.wait_until_built(WAIT_S * 2)

    def mismatch(seed: int) -> float:
        answers: queue.SimpleQueue[list[Answer]] = queue.SimpleQueue()
        engine.submit([make_request(0, PROMPT, FREE)], answers.put)
        (answer,) = answers.get(timeout=WAIT_S)
        expected = reference_logprobs(make_policy(seed), PROMPT, answer.token_ids)
        return float((torch.tensor(answer.logprobs) - expected).abs().max())

    found: dict[str, Any] = {"before": mismatch(0)}
    application = f"serl-gloo-{os.getpid()}"
    claim_folder(application)
    try:
        sender = NCCLSender(application)
        for version in (1, 2):
            named = [(name, weight.detach()) for name, weight in make_policy(version).named_parameters()]
            update = sender.prepare(Weights.of(named), version, {"replica": 2})

            def load(update: dict[str, Any] = update, version: int = version) -> None:
                if version == 1:
                    engine.join_transfer_group(worker_init_info(update["group"], "replica")).result(WAIT_S)
                engine.load_weights(update, version).result(WAIT_S)

            loading = threading.Thread(target=load)
            loading.start()
            sender.transmit(WAIT_S, lambda: None)
            loading.join(WAIT_S)
            found[f"after_{version}"] = mismatch(version)
            found[f"old_after_{version}"] = mismatch(version - 1)
            found[f"version_{version}"] = engine.weights_seq_no
        wrong = sender.prepare(Weights.of(named[:-1]), 3, {"replica": 2})
        try:
            engine.load_weights(wrong, 3).result(WAIT_S)
        except Exception as error:
            found["error"] = str(error)
        found["version_3"] = engine.weights_seq_no
    finally:
        release_folder(application)
    print(json.dumps(found), flush=True)
    # Threads of the engine and of gloo would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])

"""What an experiment's settings mean to vLLM: environment variables and engine arguments.

``vllm`` is imported inside functions: drivers and env runners read this module without it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serl.config import ExperimentConfig, ServingSection
from serl.config.nearest import nearest
from serl.models.lora import adapted_names
from serl.private.ray_serve import CODE_ON_REPLICAS_OWN_LOOP
from serl.private.vllm import load_model_class, lora_arguments, ray_stat_logger

if TYPE_CHECKING:
    from vllm import LLMEngine

# In vLLM's ``additional_config``: the `LoRASection` of what updates bring, where that is adapters.
ADAPTERS = "serl_adapters"

# KV-cache blocks of 128 tokens, vLLM's choice on CPU, would never share the head of a short prompt.
CPU_BLOCK_SIZE = 32

# Engine arguments that other settings decide, and which.
DECIDED_ELSEWHERE = {
    "model": "model.path",
    "tokenizer": "model.path",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "tensor_parallel_size": "serving.tensor_parallel_size",
    "max_num_seqs": "serving.max_num_seqs",
    "max_num_batched_tokens": "serving.max_num_batched_tokens",
    "kv_cache_memory_bytes": "serving.kv_cache_gib",
    "gpu_memory_utilization": "serving.gpu_memory_utilization",
    "weight_transfer_config": "serving.weight_transfer",
    "enable_sleep_mode": "serving.sleep_during_updates",
    "enable_lora": "model.lora",
    "max_loras": "model.lora",
    "max_lora_rank": "model.lora.rank",
    "lora_target_modules": "model.lora.target_modules",
    "seed": "seed",
    "logprobs_mode": "nothing: learners need the log-probabilities at the sampling temperature",
    "worker_extension_cls": "nothing: weights arrive through it",
    "disable_log_stats": "nothing: Ray exports them",
    "served_model_name": "nothing: exported statistics tell runs apart by it",
}


class EngineArgumentError(ValueError):
    """A key of ``serving.engine_args`` that vLLM does not know, or that another setting decides."""


def runs_on_gpu(serving: ServingSection) -> bool:
    """Whether the replicas hold accelerators."""
    return serving.num_gpus_per_replica > 0


def replica_environment(serving: ServingSection) -> dict[str, str]:
    """Environment variables that must be set before a replica's process imports torch.

    Ray sets ``OMP_NUM_THREADS=1`` in actors, and threads of GNU OpenMP that spin while they wait take
    the cores from everybody else, hence the first three. On CPU two helpers of the sampler would be
    compiled with a C++ compiler at the first request (14 s), hence ``TORCH_COMPILE_DISABLE``. What oneDNN
    builds for a shape of a batch it would keep for the last thousand shapes: a quarter of a GB, which holds
    freed memory back too, and is no faster, hence ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``. vLLM would configure
    logging anew, which closes Serve's handlers: a controller that is restarted asks every replica
    for the file of its log, and would end those that have none any more, hence ``VLLM_CONFIGURE_LOGGING``.
    """
    environment = {
        "OMP_NUM_THREADS": str(serving.num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
        **CODE_ON_REPLICAS_OWN_LOOP,
    }
    if not runs_on_gpu(serving):
        environment |= {"TORCH_COMPILE_DISABLE": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
    return environment


def engine_arguments(experiment: ExperimentConfig, model_dir: str, seed: int) -> dict[str, Any]:
    """The arguments of `vllm.EngineArgs`, without those of ``serving.engine_args``."""
    model, serving = experiment.model, experiment.serving
    arguments: dict[str, Any] = {
        "model": model_dir,
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "tensor_parallel_size": serving.tensor_parallel_size,
        "max_num_seqs": serving.max_num_seqs,
        "max_num_batched_tokens": max(serving.max_num_batched_tokens, serving.max_num_seqs),
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "seed": seed,
        "worker_extension_cls": "serl.serving.transfer.receiver.WorkerExtension",
        "additional_config": {},
    }
    lora = experiment.model.lora
    if lora is not None and experiment.sends_adapters:
        arguments |= lora_arguments(lora.rank, adapted_names(model_dir, lora))
        arguments["additional_config"] = {ADAPTERS: lora.model_dump(mode="json")}
    if runs_on_gpu(serving):
        arguments["gpu_memory_utilization"] = serving.gpu_memory_utilization
        arguments["enable_sleep_mode"] = serving.sleep_during_updates
        if serving.tensor_parallel_size > 1:
            arguments["distributed_executor_backend"] = "mp"
    else:
        arguments["enforce_eager"] = True
        arguments["block_size"] = CPU_BLOCK_SIZE
        arguments["kv_cache_memory_bytes"] = int(serving.kv_cache_gib * 2**30)
        if experiment.rollout.seeded_requests:
            # After a part of a prompt vLLM 0.32 winds a request's generator back, and torch's CPU generators
            # cannot be: the engine would die. So prompts are computed whole, and one must fit into a step.
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_batched_tokens"] = max(
                arguments["max_num_batched_tokens"], model.max_model_len
            )
    return arguments


def check_engine_args(engine_args: dict[str, Any]) -> None:
    """Raises EngineArgumentError for a key that is not the user's to set in ``serving.engine_args``."""
    from vllm import EngineArgs, __version__

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for key in engine_args:
        if key in DECIDED_ELSEWHERE:
            raise EngineArgumentError(f"serving.engine_args.{key}: decided by {DECIDED_ELSEWHERE[key]}")
        if key not in known:
            close = nearest(key, known)
            hint = "" if close is None else f"; did you mean {close!r}?"
            raise EngineArgumentError(
                f"serving.engine_args.{key}: vLLM {__version__} has no such engine argument{hint}"
            )


def build_engine(
    experiment: ExperimentConfig, model_dir: str, seed: int, exported_as: str | None = None
) -> LLMEngine:
    """A vLLM engine in this process, which must have been started with `replica_environment`.

    Ray exports the engine's statistics with the ``model_name`` of ``exported_as``, or nobody keeps any.
    Raises EngineArgumentError for wrong ``serving.engine_args`` and what vLLM raises for wrong values.
    """
    from vllm import EngineArgs, LLMEngine
    from vllm.config.weight_transfer import WeightTransferConfig

    from serl.serving.transfer.receiver import BACKEND

    engine_args = experiment.serving.engine_args
    check_engine_args(engine_args)
    config = json.loads((Path(model_dir) / "config.json").read_text(encoding="utf-8"))
    for architecture in config.get("architectures", ()):
        load_model_class(architecture)
    own = engine_arguments(experiment, model_dir, seed)
    arguments = own | engine_args
    arguments["additional_config"] = engine_args.get("additional_config", {}) | own["additional_config"]
    arguments["weight_transfer_config"] = WeightTransferConfig(backend=BACKEND)
    if exported_as is None:
        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    arguments |= {"disable_log_stats": False, "served_model_name": exported_as}
    return LLMEngine.from_engine_args(EngineArgs(**arguments), stat_loggers=[ray_stat_logger()])

"""Private parts of vLLM, as seen in version 0.32.0: of an engine that lives in this process.

`AsyncLLM` has public ways to pause and to update weights, but steps in a process or loop of its own. ``vllm``
is imported inside functions: drivers and env runners read modules of this project that lead here.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    import torch
    from vllm import LLMEngine

SEEN_IN = "0.32.0"

# vLLM's adapters are numbered from 1.
_ADAPTER_ID = 1

# Dictionaries of the registry, by architecture.
_REGISTERED_HERE = {"_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS"}


def num_requests(engine: LLMEngine) -> tuple[int, int]:
    """How many requests run and how many wait; `get_num_unfinished_requests` does not tell them apart."""
    scheduler = _core(engine).scheduler
    return len(scheduler.running), len(scheduler.waiting)


def leave_token_texts_out(engine: LLMEngine, request_name: str) -> None:
    """The answer of a request just added will have log-probabilities without the texts of their tokens.

    Decoding each token takes a sixth of a small model's time, and `SamplingParams` cannot switch it off.
    ``request_name`` is what `LLMEngine.add_request` returned.
    """
    state = engine.output_processor.request_states[request_name]
    assert state.logprobs_processor is not None
    state.logprobs_processor.tokenizer = None


def pause(engine: LLMEngine, deliver: Callable[[list[Any]], None]) -> None:
    """Keeps all requests where they are until `resume`, and forgets the prefix cache.

    ``deliver`` gets the outputs of steps that an asynchronous scheduler has already sent to the device.
    """
    from vllm.v1.core.sched.interface import PauseState

    core = _core(engine)
    core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    while core.batch_queue:
        deliver(engine.step())
    # Without clearing, later tokens would attend to keys and values of the old weights.
    core.pause_scheduler(mode="keep", clear_cache=True)


def resume(engine: LLMEngine) -> None:
    """Continues all requests after `pause`."""
    _core(engine).resume_scheduler()


def sleep(engine: LLMEngine) -> None:
    """After `pause`: gives weights and key-value cache back to the GPU; on the CPU nothing is given back."""
    engine.sleep(level=2, mode="keep")


def wake_weights(engine: LLMEngine) -> None:
    """After `sleep`: memory for the weights, with nothing in it yet."""
    engine.wake_up(["weights"])


def wake_cache(engine: LLMEngine) -> None:
    """After `wake_weights`: memory for the key-value cache; continues all requests."""
    engine.wake_up(["kv_cache"])


def load_model_class(architecture: str) -> None:
    """Lets vLLM inspect the class of ``architecture`` in this process, if it is one of its own.

    Otherwise the first start on a machine does that in a second process that imports vLLM all over again
    (10 s).
    """
    from vllm import ModelRegistry

    if architecture in ModelRegistry.models:
        ModelRegistry.register_model(architecture, ModelRegistry.models[architecture].load_model_cls())


def has_architecture(architecture: str) -> bool:
    """Whether vLLM has a class of its own for text of ``architecture``; False without vLLM.

    Read in its registry's source: importing the registry, which is public, takes seconds.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return False
    registry = Path(spec.origin).parent / "model_executor" / "models" / "registry.py"
    for statement in ast.parse(registry.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
            keys = {key.value for key in statement.value.keys if isinstance(key, ast.Constant)}
            if names & _REGISTERED_HERE and architecture in keys:
                return True
    return False


def begin_reload(model: torch.nn.Module) -> None:
    """From now on ``model.load_weights`` replaces weights layer by layer, in place."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    initialize_layerwise_reload(model)


def finish_reload(model: torch.nn.Module, model_config: Any) -> None:
    """Ends `begin_reload`, complete or not: layers that have begun are put together."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    finalize_layerwise_reload(model, model_config)


def pack_tied_heads(model: torch.nn.Module) -> None:
    """Renews the packed copy of the embeddings that a tied output layer holds on CPU; no reload does."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


def lora_arguments(rank: int, targets: list[str]) -> dict[str, Any]:
    """Engine arguments for one adapter of ``rank``, of the layers that are called one of ``targets``.

    vLLM sets memory aside for one of a few ranks, and multiplies with all of it.
    """
    from vllm.config.lora import MaxLoRARanks

    held = min(known for known in get_args(MaxLoRARanks) if known >= rank)
    arguments: dict[str, Any] = {"enable_lora": True, "max_loras": 1, "max_lora_rank": held}
    return arguments | {"lora_target_modules": targets}


def adapter_request(engine: LLMEngine) -> Any:
    """What requests say to be answered with the adapter of `put_adapter`; None without adapters."""
    from vllm.lora.request import LoRARequest

    if engine.vllm_config.lora_config is None:
        return None
    return LoRARequest("policy", _ADAPTER_ID, "in memory")


def put_adapter(model: Any, tensors: Mapping[str, torch.Tensor], rank: int, alpha: int) -> None:
    """Makes ``tensors``, whole and by PEFT's names, the adapter that `adapter_request` asks for.

    The public way, `LLMEngine.add_lora`, reads a folder of files. ``tensors`` may be changed.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager, mapper = model.lora_manager, getattr(model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        _ADAPTER_ID,
        dict(tensors),
        PEFTHelper(r=rank, lora_alpha=alpha, target_modules=[]),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    manager.remove_adapter(_ADAPTER_ID)
    manager.add_adapter(adapter)
    manager.activate_adapter(_ADAPTER_ID)


def join_nccl_group(rendezvous: dict[str, Any]) -> Any:
    """The learner's end, rank 0, of an NCCL group with vLLM's workers; returns when all have joined.

    ``rendezvous`` has ``master_address``, ``master_port`` and ``world_size``. vLLM's public trainer engine
    wants to lead the whole update, through a client of its own. Raises what `check_nccl_group` raises.
    """
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    group = trainer_init(rendezvous)
    check_nccl_group(group)
    return group


def check_nccl_group(group: Any) -> None:
    """Raises RuntimeError for a ``group`` whose broadcasts do nothing: vLLM makes one without NCCL too."""
    if group.disabled:
        raise RuntimeError(
            "broadcasts would do nothing: no NCCL library was found, or VLLM_DISABLE_PYNCCL is set"
        )


def nccl_wire_format() -> dict[str, Any]:
    """What workers must be told to read `broadcast_packed`."""
    from vllm.distributed.weight_transfer import packed_tensor

    return {
        "packed": True,
        "packed_buffer_size_bytes": packed_tensor.DEFAULT_PACKED_BUFFER_SIZE_BYTES,
        "packed_num_buffers": packed_tensor.DEFAULT_PACKED_NUM_BUFFERS,
    }


def broadcast_packed(named_tensors: Iterable[tuple[str, torch.Tensor]], group: Any) -> None:
    """Sends tensors from rank 0 of an NCCL ``group`` in the `nccl_wire_format`."""
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    wire_format = nccl_wire_format()
    packed_nccl_broadcast_producer(
        iterator=iter(named_tensors),
        group=group,
        src=0,
        post_iter_func=lambda named: named[1],
        buffer_size_bytes=wire_format["packed_buffer_size_bytes"],
        num_buffers=wire_format["packed_num_buffers"],
    )


def ray_stat_logger() -> Any:
    """The class that exports an engine's statistics through Ray, for ``stat_loggers``.

    Without the latency of every single token, a call of Ray's for each running request and step; the mean of
    each request stays. vLLM's log of the same would write into a replica's log every ten seconds, and is no
    option of `LLMEngine.from_engine_args`.
    """
    from vllm.v1.metrics.loggers import logger as loggers_logger
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    class StatLogger(RayPrometheusStatLogger):
        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            if iteration_stats is not None:
                iteration_stats.inter_token_latencies_iter = []
            super().record(scheduler_stats, iteration_stats, *args, **kwargs)

    loggers_logger.setLevel(logging.WARNING)
    return StatLogger


def _core(engine: LLMEngine) -> Any:
    """The scheduler's end of the engine; behind a client where the engine core has no process of its own."""
    return engine.engine_core.engine_core  # type: ignore[attr-defined]

"""Low-rank adapters (LoRA, arXiv 2106.09685) of a policy: where they can be, their names, shapes and files.

An adapter of a linear layer with the weight W [out, in] adds (alpha / rank) · B A to it: B [out, rank] and
A [rank, in]. They are named after the layer: ``model.layers.0.self_attn.q_proj.lora_A.weight``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from serl.config import LoRASection
from serl.config.nearest import nearest
from serl.config.sampling import ALL_LINEAR
from serl.models.weights import empty_model
from serl.private.peft import compute_in_input_dtype, select_adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

A, B = "lora_A", "lora_B"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT's files put before a name.
PEFT_PREFIX = "base_model.model."


class UnknownTargetError(ValueError):
    """A name in ``model.lora.target_modules`` that no linear layer of the policy has."""


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of ``model``'s decoder layers, by their whole names."""
    from torch import nn

    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and any(part.isdigit() for part in name.split("."))
    }


def adapted_layers(model: Any, lora: LoRASection) -> dict[str, nn.Linear]:
    """Those that get an adapter. Raises UnknownTargetError, with the nearest names there are."""
    layers = linear_layers(model)
    if not layers:
        kind = type(model).__name__
        raise UnknownTargetError(f"model.lora: {kind} has no linear layers in its decoder layers")
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    if lora.target_modules == (ALL_LINEAR,):
        return layers
    for target in lora.target_modules:
        if target not in names:
            close = nearest(target, [*names, ALL_LINEAR])
            hint = "." if close is None else f"; did you mean {close!r}?"
            raise UnknownTargetError(
                f"model.lora.target_modules = {target!r}: no linear layer of the policy has this name{hint} "
                f"Its decoder layers have {', '.join(names)}; {ALL_LINEAR} is all of them"
            )
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in lora.target_modules}


def add_adapters(model: Any, lora: LoRASection, adapters: Iterable[str], seed: int) -> None:
    """Gives ``model`` the named ``adapters``, in float32, and lets only the first of them be trained.

    A of each is drawn from ``seed``, and B is 0: ``model`` answers as before. Adapters of parameters without
    memory have none. Raises UnknownTargetError.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    config = _peft_config(lora, adapted_layers(model, lora))
    is_empty = next(model.parameters()).is_meta
    first, *others = adapters
    for adapter in (first, *others):
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(**config), model, adapter, low_cpu_mem_usage=is_empty)
    for name, parameter in model.named_parameters():
        is_adapter = f".{A}." in name or f".{B}." in name
        parameter.requires_grad_(is_adapter and name.endswith(f".{first}.weight"))
        if is_adapter:
            parameter.data = parameter.data.float()
    compute_in_input_dtype(model)
    select_adapter(model, first)


def adapter_weights(model: Any, adapter: str) -> dict[str, Tensor]:
    """The parameters of one of ``model``'s adapters, by their names in PEFT's files."""
    end = f".{adapter}.weight"
    return {
        f"{name.removesuffix(end)}.weight": parameter
        for name, parameter in model.named_parameters()
        if name.endswith((f".{A}{end}", f".{B}{end}"))
    }


def base_name(name: str) -> str:
    """What a weight of a model with adapters is called without them."""
    return name.replace(".base_layer.", ".")


def adapted_names(model_dir: str, lora: LoRASection) -> list[str]:
    """What the adapted layers of the policy in the local folder ``model_dir`` are called in their parents."""
    return sorted({layer.rpartition(".")[2] for layer in adapted_layers(empty_model(model_dir), lora)})


def adapter_shapes(model_dir: str, lora: LoRASection) -> dict[str, tuple[int, ...]]:
    """The shapes of all adapters of the policy in the local folder ``model_dir``; none is made."""
    return {
        name: shape
        for layer, linear in adapted_layers(empty_model(model_dir), lora).items()
        for name, shape in (
            (f"{layer}.{A}.weight", (lora.rank, linear.in_features)),
            (f"{layer}.{B}.weight", (linear.out_features, lora.rank)),
        )
    }


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, lora: LoRASection) -> Tensor:
    """W + (alpha / rank) · B A, float32 [out, in]."""
    return weight.float() + (lora.alpha / lora.rank) * (b.float() @ a.float())


def adapter_config(lora: LoRASection, layers: Iterable[str], base: str) -> dict[str, Any]:
    """What ``adapter_config.json`` holds of adapters of the layers with these whole names."""
    from peft import LoraConfig

    config = LoraConfig(**_peft_config(lora, layers), inference_mode=True)
    config.base_model_name_or_path = base
    values = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}


def _peft_config(lora: LoRASection, layers: Iterable[str]) -> dict[str, Any]:
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "task_type": "CAUSAL_LM",
    }

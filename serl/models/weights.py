"""Which weights a policy has: what learners publish, and what replicas must be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers under their Hugging Face names; tied ones once."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights


def weight_shapes(model_dir: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the `named_weights` of the policy in the local folder ``model_dir``; none is made."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(weight.shape) for name, weight in named_weights(model).items()}

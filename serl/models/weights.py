"""A policy and its weights: what learners publish, and what replicas must be sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from serl.models.resolve import ModelPathError
from serl.models.sizes import checkpoint_shapes

if TYPE_CHECKING:
    import torch
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


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds ``model``'s parameters; what it computes positions from stays as exact as it is."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def load_model(model_dir: str, attention: str = "sdpa", dtype: str = "float32") -> Any:
    """The policy in the local folder ``model_dir``, on the CPU, in ``dtype``; ``auto``: in its files' own.

    Raises ModelPathError if its files are damaged, or lack weights, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    checkpoint_shapes(Path(model_dir))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=dtype,
        attn_implementation=attention,
        local_files_only=True,
        output_loading_info=True,
    )
    model, found = loaded
    if missing := found["missing_keys"]:
        lacking = f"{len(missing)} weights of the model that its config.json describes"
        raise ModelPathError(f"{model_dir}: its files lack {lacking}, such as {min(missing)}")
    return model


def empty_model(model_dir: str, attention: str = "sdpa") -> Any:
    """The same model with parameters on the meta device; its buffers are what they should be."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    # Inside, every parameter that a module is given becomes an object of its own, tied ones too.
    model.tie_weights()
    return model.eval()


def weight_shapes(model_dir: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the `named_weights` of the policy in the local folder ``model_dir``; none is made."""
    return {name: tuple(weight.shape) for name, weight in named_weights(empty_model(model_dir)).items()}

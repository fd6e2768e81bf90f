"""What learners publish: whole weights, adapters alone, or weights that adapters are merged into."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from serl.learner.parallel import whole
from serl.learner.rl_module import CausalLMModule
from serl.models.lora import A, B, base_name, merged_weight
from serl.models.weights import named_weights
from serl.serving.transfer.landing import TensorSpec, dtype_name
from serl.serving.transfer.sender import Weights


def published_weights(policy: CausalLMModule, dtype: torch.dtype, as_adapters: bool) -> Weights:
    """Whole tensors, one at a time, in ``dtype``; all learners must ask for all of them.

    ``as_adapters``: of a policy with adapters only these.
    """
    if policy.lora is not None and not as_adapters:
        return _merged(policy, dtype)
    shards = policy.trained_weights()
    specs = {name: TensorSpec(tuple(shard.shape), dtype_name(dtype)) for name, shard in shards.items()}
    # Shards are cast, not whole tensors: learners send each other half of the bytes in bfloat16.
    return Weights(specs, ((name, whole(shard.detach().to(dtype))) for name, shard in shards.items()))


def _merged(policy: CausalLMModule, dtype: torch.dtype) -> Weights:
    """The sum is float32, and rounded afterwards."""
    lora, adapters = policy.lora, policy.trained_weights()
    assert lora is not None
    base = {
        base_name(name): shard
        for name, shard in named_weights(policy.model).items()
        if f".{A}." not in name and f".{B}." not in name
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shard in base.items():
            weight, layer = whole(shard.detach()), name.removesuffix(".weight")
            if (a := adapters.get(f"{layer}.{A}.weight")) is not None:
                b = adapters[f"{layer}.{B}.weight"]
                weight = merged_weight(weight, whole(a.detach()), whole(b.detach()), lora)
            yield name, weight.to(dtype)

    specs = {name: TensorSpec(tuple(shard.shape), dtype_name(dtype)) for name, shard in base.items()}
    return Weights(specs, tensors())

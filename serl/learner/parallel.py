"""One policy over several learners: FSDP2 shards, and whole tensors made of them again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from serl.learner.rl_module import CausalLMModule
from serl.private.transformers import decoder_layer_names


def shard_module(module: CausalLMModule, compute_dtype: torch.dtype, device: torch.device) -> None:
    """Shards an empty ``module`` over all learners, one unit a decoder layer, and gives its shards memory.

    Its parameters become new objects, whose values are yet to be filled in. Gradients are reduced in float32
    and averaged over the learners. A frozen module keeps nothing unsharded after a forward pass.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    own_dtypes = {parameter.dtype for parameter in module.parameters()}
    param_dtype = None if own_dtypes == {compute_dtype} else compute_dtype
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
    unit_names = decoder_layer_names(module.model)
    for layer in list(module.model.modules()):
        if type(layer).__name__ in unit_names:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True if is_frozen else None)
    buffers = {name: buffer.to(device) for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    module.model.tie_weights()
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


@torch.no_grad()
def fill_from_first_learner(targets: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Fills ``targets`` with the whole ``weights`` that the first learner has, one tensor at a time.

    A collective; ``weights`` of other learners may be empty.
    """
    for name, target in targets.items():
        if dist.get_rank() == 0:
            whole_weight = weights[name].to(target.device, target.dtype).contiguous()
        else:
            whole_weight = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        dist.broadcast(whole_weight, src=0)
        copy_whole_into(target, whole_weight)


def full_tensors(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Whole detached tensors, one at a time. Every learner must exhaust it: sharded ones are gathered."""
    for name, tensor in tensors.items():
        yield name, whole(tensor.detach())


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` itself, or all of its shards put together (a collective)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_over_learners(values: Tensor) -> tuple[Tensor, int]:
    """``values`` [n] of all learners one after another, and where this learner's begin (a collective)."""
    own_size = torch.tensor([values.numel()], device=values.device)
    sizes = [torch.zeros_like(own_size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own_size)
    counts = [int(size) for size in sizes]
    padded = values.new_zeros(max(counts))
    padded[: values.numel()] = values
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    everywhere = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return everywhere, sum(counts[: dist.get_rank()])


@torch.no_grad()
def copy_whole_into(target: Tensor, source: Tensor) -> None:
    """Copies the whole ``source``, which every learner has, into ``target`` or this learner's shard of it."""
    if isinstance(target, DTensor):
        placed = source.to(target.device)
        own = distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(own.to_local())
    else:
        target.copy_(source)

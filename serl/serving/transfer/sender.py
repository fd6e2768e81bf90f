"""What a learner does to get weights to the replicas; one implementation for each kind of transfer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class Sender(Protocol):
    """The learner's end. The calls come in this order, once for each version of the weights."""

    def prepare(
        self, named_tensors: NamedTensors, weights_seq_no: int, replicas: dict[str, int]
    ) -> dict[str, Any]:
        """Consumes ``named_tensors``; returns the update to announce, as the receiver takes it.

        ``replicas`` are those that serve now, with their numbers of workers. ``num_bytes`` of the update
        says how much there is to send.
        """
        ...

    def transmit(self, timeout_s: float) -> None:
        """Sends what the replicas receive while they carry the announced update out."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """After all replicas acknowledged: the update for a replica that starts later."""
        ...

    def close(self) -> None:
        """Frees what is held for the replicas."""
        ...


def describe(tensors: list[tuple[str, torch.Tensor]]) -> dict[str, list[Any]]:
    """Names, dtypes and shapes, as vLLM's weight-transfer engines want them."""
    return {
        "names": [name for name, _ in tensors],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        "shapes": [list(tensor.shape) for _, tensor in tensors],
    }

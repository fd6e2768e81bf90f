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

        ``replicas`` are those that serve now, with their numbers of workers. An update says its ``kind`` and
        ``weights_seq_no``, in ``info`` what to receive (`serl.serving.transfer.landing.describe`, trailer
        included), and in ``num_bytes`` how much the weights are. Raises UpdateError if there are none.
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

"""What a learner does to get weights to the replicas; one implementation for each kind of transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, Self

import torch

from serl.serving.transfer.landing import TensorSpec


class Weights:
    """A policy's weights by the names of its Hugging Face checkpoint, whole, one at a time and once.

    ``specs`` say what they are before they are there: sharded ones are gathered as they are asked for.
    Threads may take turns.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.specs = specs
        self._tensors = iter(tensors)
        self._turn = threading.Lock()

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, torch.Tensor]]) -> Self:
        """Whole tensors that are there."""
        named = dict(tensors)
        return cls({name: TensorSpec.of(tensor) for name, tensor in named.items()}, named.items())

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[str, torch.Tensor]:
        with self._turn:
            name, tensor = next(self._tensors)
        return name, tensor.detach().contiguous()


class Sender(Protocol):
    """The learner's end. The calls come in this order, once for each version of the weights."""

    def prepare(self, weights: Weights, weights_seq_no: int, replicas: dict[str, int]) -> dict[str, Any]:
        """Takes ``weights`` to be sent, and returns the update to announce, as the receiver takes it.

        ``replicas`` are those that serve now, with their numbers of workers. An update says its ``kind`` and
        ``weights_seq_no``, in ``info`` what to receive (`serl.serving.transfer.landing.announcement`, trailer
        included), and in ``num_bytes`` how much the weights are. Raises UpdateError if there are none.
        """
        ...

    def transmit(self, timeout_s: float, check: Callable[[], None]) -> None:
        """Sends what the replicas receive while they carry the announced update out.

        ``check`` is called now and then; what it raises ends the waiting. Raises TimeoutError.
        """
        ...

    def snapshot(self) -> Future[dict[str, Any]]:
        """After all replicas acknowledged: the update for a replica that starts later, once it is written.

        Until then no other version may be prepared.
        """
        ...

    def close(self) -> None:
        """Frees what is held for the replicas."""
        ...

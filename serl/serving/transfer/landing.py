"""That weights which are announced have landed: what every receiver of every transfer checks.

Before anything is received, the announced names, shapes and dtypes must be those of the model. Each tensor
that arrives must be one of them, once, in the announced shape and dtype. The last tensor of an update is its
trailer: the version, and a checksum of each tensor as the learner had it. Without it, a broadcast that wrote
nothing, or that of another version, would look like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch

TRAILER = "serl.trailer"
_NUM_NAMED_IN_ERRORS = 5


class UpdateError(ValueError):
    """An update that is not the announced one, or not one of this model."""


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` → ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is announced of one tensor; ``dtype`` is the name of one of torch's."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), dtype_name(tensor.dtype))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def announcement(specs: Mapping[str, TensorSpec], weights_seq_no: int) -> dict[str, list[Any]]:
    """Names, dtypes and shapes of an update, its trailer too, as vLLM's weight-transfer engines want them.

    Raises UpdateError if there are no tensors.
    """
    if not specs:
        raise UpdateError(f"weights {weights_seq_no} have no tensors")
    announced = {**specs, TRAILER: TensorSpec((1 + len(specs),), "int64")}
    return {
        "names": list(announced),
        "dtype_names": [spec.dtype for spec in announced.values()],
        "shapes": [list(spec.shape) for spec in announced.values()],
    }


def with_trailer(
    tensors: Iterable[tuple[str, torch.Tensor]], weights_seq_no: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The update with ``tensors``, one at least: behind them its trailer, int64 [1 + number of tensors]."""
    sums: list[torch.Tensor] = []
    for name, tensor in tensors:
        sums.append(checksum(tensor))
        yield name, tensor
    yield TRAILER, torch.stack([sums[0].new_tensor(weights_seq_no), *sums])


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the bytes of ``tensor``, eight at a time, modulo 2**64: int64 [] on its device."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    num_whole = data.numel() // 8 * 8
    return data[:num_whole].view(torch.int64).sum() + data[num_whole:].sum(dtype=torch.int64)


class LoadsWeights(Protocol):
    """As models of vLLM do."""

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], /) -> set[str] | None: ...


class Landing:
    """One announced update on its way into ``target``, for which it stands: `load_weights` checks and loads.

    ``update`` is what the learner announced, ``target_shapes`` the shapes of the target's own weights by
    their Hugging Face names, ``dtype`` theirs. Raises UpdateError if the announcement is not one of this
    model.
    """

    def __init__(
        self,
        target: LoadsWeights,
        update: dict[str, Any],
        target_shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        info = update["info"]
        specs = zip(info["shapes"], info["dtype_names"], strict=True)
        announced = [TensorSpec(tuple(shape), dtype_name) for shape, dtype_name in specs]
        self.weights_seq_no: int = update["weights_seq_no"]
        self._target = target
        self._announced = dict(zip(info["names"], announced, strict=True))
        self._sums: dict[str, torch.Tensor] = {}
        self._trailer: torch.Tensor | None = None
        self._filled_parameters: set[str] | None = set()
        self._check_announced(target_shapes, dtype_name(dtype))

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Loads tensors of the update; raises UpdateError for one that was not announced so."""
        filled = self._target.load_weights(self._checked(named_tensors))
        if filled is None or self._filled_parameters is None:
            self._filled_parameters = None  # not every model of vLLM says what it has loaded
        else:
            self._filled_parameters |= filled

    def check_complete(self, parameters: set[str]) -> None:
        """Raises UpdateError unless all that was announced arrived unchanged and filled ``parameters``."""
        missing = [name for name in self._announced if name not in self._sums and name != TRAILER]
        if missing or self._trailer is None:
            self._fail(f"{_listed(missing or [TRAILER])} did not arrive")
        sent_seq_no, *sent_sums = self._trailer.tolist()
        if sent_seq_no != self.weights_seq_no:
            self._fail(f"what arrived are weights {sent_seq_no}")
        arrived_sums = torch.stack([self._sums[name] for name in self._announced if name != TRAILER]).tolist()
        pairs = zip(self._announced, sent_sums, arrived_sums, strict=False)
        changed = [name for name, sent, arrived in pairs if sent != arrived]
        if changed or len(sent_sums) != len(arrived_sums):
            self._fail(f"{_listed(changed)} arrived with other bytes than were sent")
        if self._filled_parameters is not None and parameters - self._filled_parameters:
            self._fail(f"nothing filled {_listed(sorted(parameters - self._filled_parameters))}")

    def _check_announced(self, target_shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        weights = {name: spec for name, spec in self._announced.items() if name != TRAILER}
        expected = {name: TensorSpec(shape, dtype) for name, shape in target_shapes.items()}
        if missing := sorted(expected.keys() - weights.keys()):
            self._fail(f"the update lacks weights for {_listed(missing)}")
        if unknown := sorted(weights.keys() - expected.keys()):
            self._fail(f"the replica's model has no {_listed(unknown)}")
        for name, spec in weights.items():
            if spec != expected[name]:
                self._fail(f"{name} is announced as {spec}, the replica's is {expected[name]}")
        if len(weights) == len(self._announced):
            self._fail("the update has no trailer")

    def _checked(
        self, named_tensors: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in named_tensors:
            spec = self._announced.get(name)
            if spec is None:
                self._fail(f"{name} arrived, which was not announced")
            if spec != TensorSpec.of(tensor):
                self._fail(f"{name} was announced as {spec} and arrived as {TensorSpec.of(tensor)}")
            if name in self._sums:
                self._fail(f"{name} arrived twice")
            if name == TRAILER:
                # The buffer that it arrived in is used again.
                self._trailer = tensor.clone()
            else:
                self._sums[name] = checksum(tensor)
                yield name, tensor

    def _fail(self, what: str) -> NoReturn:
        raise UpdateError(f"weights {self.weights_seq_no} are not loaded: {what}")


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_NAMED_IN_ERRORS
    return ", ".join(names[:_NUM_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")

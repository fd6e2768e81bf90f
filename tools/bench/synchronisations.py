"""How often a learner waits for its device: what of a tensor's values reaches Python."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# A number is read, or a shape is known only once values are.
_READS = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
}
_COPIES = {Tensor.tolist, Tensor.numpy, Tensor.cpu}


class HostSynchronisations:
    """Counts them while its block runs; on a CPU the same calls wait for nothing, and are counted alike."""

    def __init__(self) -> None:
        self.number = 0
        self._operators, self._functions = _Operators(self), _Functions(self)

    def __enter__(self) -> Self:
        self._operators.__enter__()
        self._functions.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._functions.__exit__(kind, error, trace)
        self._operators.__exit__(kind, error, trace)


class _Operators(TorchDispatchMode):
    def __init__(self, counter: HostSynchronisations) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_masked = func is _aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self._counter.number += func in _READS or is_masked
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, counter: HostSynchronisations) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._counter.number += func in _COPIES
        return func(*args, **(kwargs or {}))

"""Where an update's time goes: kinds of operations, and what the machine could do at most."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tools.bench.figures import Figures

MATRICES, HEAD, ATTENTION = "matrix products", "LM head and its scores", "attention"
COPIES, ELEMENTWISE, OPTIMIZER = "gathers and copies", "elementwise", "optimizer"
AUTOGRAD, PYTHON = "autograd's own", "Python"
KINDS = (MATRICES, HEAD, ATTENTION, COPIES, ELEMENTWISE, OPTIMIZER, AUTOGRAD, PYTHON)

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
_COPYING = ("index", "cat", "copy", "clone", "gather", "scatter", "embedding", "stack", "pad", "to")
_PEAK_SIZE = 1024
_PEAK_S = 1.0


@dataclass(frozen=True, slots=True)
class Operation:
    """A call without those that it made: ``seconds`` are its own. ``shapes`` of its tensors, [] of others."""

    name: str
    shapes: Sequence[Sequence[int]]
    seconds: float


@dataclass(slots=True)
class Profile:
    """``seconds`` of all and by kind; ``products``: floating point operations of matrix products.

    They are those outside attention, LM head included.
    """

    seconds: float
    by_kind: Counter[str] = field(default_factory=Counter)
    product_seconds: float = 0.0
    products: float = 0.0

    @classmethod
    def of(cls, operations: Iterable[Operation], seconds: float, vocabulary: int) -> Profile:
        """What no operation took is Python's. ``vocabulary``: a dimension of the LM head's tensors alone."""
        found = cls(seconds)
        for operation in operations:
            found.by_kind[kind_of(operation, vocabulary)] += operation.seconds  # pyright: ignore[reportArgumentType]
            if operation.name in _PRODUCTS:
                found.product_seconds += operation.seconds
                found.products += num_operations(operation)
        found.by_kind[PYTHON] = max(seconds - sum(found.by_kind.values()), 0.0)  # pyright: ignore[reportArgumentType]
        return found

    def share(self, kind: str) -> float:
        return self.by_kind[kind] / self.seconds


def kind_of(operation: Operation, vocabulary: int) -> str:
    name = operation.name
    if "adam" in name or "_foreach" in name:
        return OPTIMIZER
    if any(vocabulary in shape for shape in operation.shapes):
        return HEAD
    if "scaled_dot_product" in name or "attention" in name:
        return ATTENTION
    if name in _PRODUCTS:
        return MATRICES
    if not name.startswith("aten::"):
        return AUTOGRAD
    words = name.removeprefix("aten::").strip("_").split("_")
    return COPIES if any(word in _COPYING for word in words) else ELEMENTWISE


def num_operations(product: Operation) -> float:
    """Multiplications and additions of a matrix product, from the shapes of its factors."""
    *_, left, right = [shape for shape in product.shapes if len(shape) >= 2][-2:]
    batch = left[0] if len(left) == 3 else 1
    return 2.0 * batch * left[-2] * left[-1] * right[-1]


def profiled(update: Callable[[], object], vocabulary: int) -> Profile:
    """One call of ``update``, on the processor."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        started = time.perf_counter()
        update()
        seconds = time.perf_counter() - started
    events: Any = profiler.events()
    operations = (
        Operation(event.name, event.input_shapes or [], event.self_cpu_time_total / 1e6) for event in events
    )
    return Profile.of(operations, seconds, vocabulary)


def peak() -> float:
    """Floating point operations a second of the best of many products of large float32 matrices."""
    left, right = torch.rand(2, _PEAK_SIZE, _PEAK_SIZE)
    best = float("inf")
    began = time.perf_counter()
    while time.perf_counter() - began < _PEAK_S:
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2.0 * _PEAK_SIZE**3 / best


def report(profiles: Sequence[Profile], peaks: Sequence[float], figures: Figures) -> None:
    """The table: shares of an update's time, and of what the machine's matrix products could do in it."""
    figures.add("profiled update", (one.seconds for one in profiles), "s")
    for kind in KINDS:
        figures.add(f"of it {kind}", (one.share(kind) for one in profiles), "of all")
    figures.add("matrix products at most", (one / 1e9 for one in peaks), "GFLOP/s")
    achieved = "matrix products while they run"
    figures.add(achieved, (one.products / one.product_seconds / 1e9 for one in profiles), "GFLOP/s")
    pairs = list(zip(profiles, peaks, strict=True))
    figures.add("update / products at most", (one.products / one.seconds / most for one, most in pairs))

"""Weights in shared memory that are not what was announced: no replica claims them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transfer_helpers import K_PROJ, Replica, application, assert_dies, named, rendezvous, weights, workers

from serl.serving.transfer.landing import TRAILER, with_trailer
from serl.serving.transfer.receiver import PolicyWeightReceiver
from serl.serving.transfer.shared_memory import SharedMemorySender

pytestmark = pytest.mark.usefixtures("one_torch_thread", "rendezvous")
__all__ = ["application", "rendezvous", "workers"]


def rewrite(path: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    change(tensors)
    save_file(tensors, path)


def halve(tensors: dict[str, Tensor]) -> None:
    tensors[K_PROJ] = tensors[K_PROJ][:32].clone()


def lower(tensors: dict[str, Tensor]) -> None:
    tensors[K_PROJ] = tensors[K_PROJ].bfloat16()


def put_older_weights(tensors: dict[str, Tensor]) -> None:
    older = named(0)
    tensors.update(with_trailer(older, 0))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop(K_PROJ), f"{K_PROJ} did not arrive"),
        (lambda tensors: tensors.pop(TRAILER), f"{TRAILER} did not arrive"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "extra arrived, which was not announced"),
        (halve, r"announced as float32 \[64, 64\] and arrived as float32 \[32, 64\]"),
        (lower, r"announced as float32 \[64, 64\] and arrived as bfloat16 \[64, 64\]"),
        (lambda tensors: tensors[K_PROJ].zero_(), f"{K_PROJ} arrived with other bytes than were sent"),
        (put_older_weights, "what arrived are weights 0"),
    ],
)
def test_a_file_that_is_not_what_was_announced_ends_the_replica(
    workers: list[PolicyWeightReceiver], application: str, change: Any, why: str
) -> None:
    update = SharedMemorySender(application).prepare(weights(1), 1, {})
    rewrite(update["path"], change)
    assert_dies(Replica("replica", workers[:1]), update, f"weights 1 are not loaded: .*{why}")


@pytest.mark.parametrize("num_bytes", [0, 4, 3000, -100])
def test_a_truncated_file_ends_the_replica(
    workers: list[PolicyWeightReceiver], application: str, num_bytes: int
) -> None:
    update = SharedMemorySender(application).prepare(weights(1), 1, {})
    path = Path(update["path"])
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert_dies(Replica("replica", workers[:1]), update, "is not a whole file of weights")

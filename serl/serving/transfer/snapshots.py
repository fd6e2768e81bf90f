"""Copies in shared memory of weights that travel from GPU to GPU, for replicas that start later."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from serl.serving.transfer.sender import Weights
from serl.serving.transfer.shared_memory import SharedMemorySender


class SnapshotWriter:
    """Holds one copy of a version in the host's memory until a thread has written it to shared memory."""

    def __init__(self, application: str, node_id: str | None) -> None:
        self._files = SharedMemorySender(application, node_id)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._copies: list[tuple[str, torch.Tensor]] = []

    def begin(self) -> None:
        """From now on `copy` takes the tensors of a new version."""
        self._copies = []

    def copy(self, name: str, tensor: torch.Tensor) -> None:
        """Copies ``tensor`` in the order of its stream's work; it need not be kept for that."""
        copied = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        copied.copy_(tensor, non_blocking=True)
        self._copies.append((name, copied))

    def write(self, weights_seq_no: int) -> Future[dict[str, Any]]:
        """Writes what was copied, all of which must have arrived; the update for whoever is to load it."""
        copies, self._copies = self._copies, []

        def write() -> dict[str, Any]:
            self._files.prepare(Weights.of(copies), weights_seq_no, {})
            return self._files.keep_newest()

        return self._thread.submit(write)

    def close(self) -> None:
        """Returns when what was begun is written."""
        self._copies = []
        self._thread.shutdown()

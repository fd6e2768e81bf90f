"""Weights that stay on the GPU: replicas on the learner's GPU open CUDA IPC handles of its tensors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_tensor

from serl.serving.transfer.landing import announcement, with_trailer
from serl.serving.transfer.sender import Weights
from serl.serving.transfer.snapshots import SnapshotWriter


class IPCSender:
    """Sends handles; the tensors are held until the replicas have copied them."""

    def __init__(self, application: str, node_id: str | None = None) -> None:
        self._snapshots = SnapshotWriter(application, node_id)
        self._sent: list[tuple[str, torch.Tensor]] = []
        self._weights_seq_no = 0

    def prepare(self, weights: Weights, weights_seq_no: int, replicas: dict[str, int]) -> dict[str, Any]:
        self._weights_seq_no = weights_seq_no
        info = announcement(weights.specs, weights_seq_no)
        self._sent = list(with_trailer(weights, weights_seq_no))
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        # The handles point to memory that kernels may still be writing.
        torch.cuda.synchronize()
        handles = [{gpu: reduce_tensor(tensor)[1]} for _, tensor in self._sent]
        return {
            "kind": "ipc",
            "weights_seq_no": weights_seq_no,
            "num_bytes": sum(tensor.nbytes for _, tensor in self._sent[:-1]),
            # As bytes: the weight store, which hands this on, would have to import torch to read it.
            "info": info | {"ipc_handles": pickle.dumps(handles)},
        }

    def transmit(self, timeout_s: float, check: Callable[[], None]) -> None:
        """Nothing to send: the replicas read this process's memory."""

    def snapshot(self) -> Future[dict[str, Any]]:
        self._snapshots.begin()
        for name, tensor in self._sent[:-1]:
            self._snapshots.copy(name, tensor)
        torch.cuda.synchronize()
        self._free()
        return self._snapshots.write(self._weights_seq_no)

    def close(self) -> None:
        self._free()
        self._snapshots.close()

    def _free(self) -> None:
        self._sent = []
        torch.cuda.ipc_collect()

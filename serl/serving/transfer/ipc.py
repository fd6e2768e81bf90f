"""Weights that stay on the GPU: replicas on the learner's GPU open CUDA IPC handles of its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_tensor

from serl.serving.transfer.landing import describe, trailer
from serl.serving.transfer.sender import NamedTensors
from serl.serving.transfer.shared_memory import SharedMemorySender


class IPCSender:
    """Sends handles; the tensors are held until the replicas have copied them."""

    def __init__(self, application: str, node_id: str | None = None) -> None:
        self._snapshots = SharedMemorySender(application, node_id)
        self._tensors: list[tuple[str, torch.Tensor]] = []
        self._trailer: tuple[str, torch.Tensor] | None = None
        self._weights_seq_no = 0

    def prepare(
        self, named_tensors: NamedTensors, weights_seq_no: int, replicas: dict[str, int]
    ) -> dict[str, Any]:
        self._weights_seq_no = weights_seq_no
        self._tensors = [(name, tensor.detach().contiguous()) for name, tensor in named_tensors]
        self._trailer = trailer(self._tensors, weights_seq_no)
        sent = [*self._tensors, self._trailer]
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        # The handles point to memory that kernels may still be writing.
        torch.cuda.synchronize()
        return {
            "kind": "ipc",
            "weights_seq_no": weights_seq_no,
            "num_bytes": sum(tensor.nbytes for _, tensor in self._tensors),
            "info": describe(sent) | {"ipc_handles": [{gpu: reduce_tensor(tensor)[1]} for _, tensor in sent]},
        }

    def transmit(self, timeout_s: float) -> None:
        """Nothing to send: the replicas read this process's memory."""

    def snapshot(self) -> dict[str, Any]:
        self._snapshots.prepare(self._tensors, self._weights_seq_no, {})
        self.close()
        return self._snapshots.snapshot()

    def close(self) -> None:
        self._tensors, self._trailer = [], None
        torch.cuda.ipc_collect()

"""Weights broadcast through NCCL from the learner's GPU to the workers of all replicas.

The NCCL group is fixed: it is made anew when replicas have come or gone since the last broadcast. A
replica that dies during a broadcast leaves the learner waiting in it; the deadline ends that with an error,
and the run resumes from its checkpoint.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import ray
import torch

from serl.private import vllm as private_vllm
from serl.serving.transfer.sender import NamedTensors, describe
from serl.serving.transfer.shared_memory import SharedMemorySender


class NCCLSender:
    """Rank 0 of the group; the workers of the first replica follow, then those of the second, and so on."""

    def __init__(self, application: str) -> None:
        self._snapshots = SharedMemorySender(application)
        self._tensors: list[tuple[str, torch.Tensor]] = []
        self._weights_seq_no = 0
        self._members: dict[str, int] = {}
        self._rendezvous: dict[str, Any] = {}
        self._group: Any = None

    def prepare(
        self, named_tensors: NamedTensors, weights_seq_no: int, replicas: dict[str, int]
    ) -> dict[str, Any]:
        self._weights_seq_no = weights_seq_no
        self._tensors = [(name, tensor.detach().contiguous()) for name, tensor in named_tensors]
        if replicas != self._members:
            self._plan_group(replicas)
        return {
            "kind": "nccl",
            "num_bytes": sum(tensor.nbytes for _, tensor in self._tensors),
            "info": describe(self._tensors),
            "group": self._rendezvous,
        }

    def transmit(self, timeout_s: float) -> None:
        if not self._members:
            return
        device = torch.cuda.current_device()
        errors: list[BaseException] = []
        # A thread that NCCL holds cannot be stopped; as a daemon it does not keep the process alive.
        thread = threading.Thread(target=self._broadcast, args=(device, errors), daemon=True)
        thread.start()
        thread.join(timeout_s)
        if thread.is_alive():
            raise TimeoutError(
                f"the NCCL broadcast of weights {self._weights_seq_no} to {len(self._members)} replicas "
                f"did not end within {timeout_s:g} s"
            )
        if errors:
            raise errors[0]

    def snapshot(self) -> dict[str, Any]:
        self._snapshots.prepare(self._tensors, self._weights_seq_no, {})
        self._tensors = []
        return self._snapshots.snapshot()

    def close(self) -> None:
        self._tensors = []
        if self._group is not None:
            self._group.destroy()
            self._group = None

    def _plan_group(self, replicas: dict[str, int]) -> None:
        self.close()
        self._members = dict(replicas)
        rank_offsets, world_size = {}, 1
        for replica, num_workers in replicas.items():
            rank_offsets[replica] = world_size
            world_size += num_workers
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self._rendezvous = {
            "master_address": ray.util.get_node_ip_address(),
            "master_port": port,
            "world_size": world_size,
            "rank_offsets": rank_offsets,
        }

    def _broadcast(self, device: int, errors: list[BaseException]) -> None:
        try:
            torch.cuda.set_device(device)
            if self._group is None:
                self._group = private_vllm.join_nccl_group(self._rendezvous)
            private_vllm.broadcast_packed(self._tensors, self._group)
            torch.cuda.current_stream().synchronize()
        except BaseException as error:
            errors.append(error)


def worker_init_info(group: dict[str, Any], replica: str) -> dict[str, Any]:
    """What the workers of ``replica`` need to join ``group`` of an announced update."""
    return {
        "kind": "nccl",
        "master_address": group["master_address"],
        "master_port": group["master_port"],
        "world_size": group["world_size"],
        "rank_offset": group["rank_offsets"][replica],
        **private_vllm.nccl_wire_format(),
    }

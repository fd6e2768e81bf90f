"""Weights broadcast through NCCL from the learner's GPU to the workers of all replicas.

The NCCL group is fixed: it is made anew when replicas have come or gone since the last broadcast, or if
that failed. A replica that dies during a broadcast leaves the learner waiting in it; the deadline ends that
with an error, and the run resumes from its checkpoint.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from typing import Any

import ray
import torch

from serl.private import vllm as private_vllm
from serl.serving.transfer.landing import describe, trailer
from serl.serving.transfer.sender import NamedTensors
from serl.serving.transfer.shared_memory import SharedMemorySender


class NCCLSender:
    """Rank 0 of the group; the workers of the first replica follow, then those of the second, and so on."""

    def __init__(self, application: str, node_id: str | None = None) -> None:
        self._snapshots = SharedMemorySender(application, node_id)
        self._tensors: list[tuple[str, torch.Tensor]] = []
        self._sent: list[tuple[str, torch.Tensor]] = []
        self._weights_seq_no = 0
        self._members: dict[str, int] = {}
        self._rendezvous: dict[str, Any] = {}
        self._group: Any = None

    def prepare(
        self, named_tensors: NamedTensors, weights_seq_no: int, replicas: dict[str, int]
    ) -> dict[str, Any]:
        self._weights_seq_no = weights_seq_no
        self._tensors = [(name, tensor.detach().contiguous()) for name, tensor in named_tensors]
        self._sent = [*self._tensors, trailer(self._tensors, weights_seq_no)]
        if replicas != self._members:
            self._plan_group(replicas)
        # vLLM packs on streams of its own, which do not wait for the one that tensors are gathered on.
        torch.cuda.synchronize()
        return {
            "kind": "nccl",
            "weights_seq_no": weights_seq_no,
            "num_bytes": sum(tensor.nbytes for _, tensor in self._tensors),
            "info": describe(self._sent),
            "group": self._rendezvous,
        }

    def transmit(self, timeout_s: float) -> None:
        if not self._members:
            return
        outcome: Future[Any] = Future()
        arguments = (torch.cuda.current_device(), self._group, self._rendezvous, self._sent, outcome)
        # A thread that NCCL holds cannot be stopped; as a daemon it does not keep the process alive.
        threading.Thread(target=_broadcast, args=arguments, daemon=True).start()
        num_replicas = len(self._members)
        try:
            self._group = outcome.result(timeout_s)
        except BaseException as error:
            self._forget_group()
            if isinstance(error, TimeoutError) and not outcome.done():
                raise TimeoutError(
                    f"the NCCL broadcast of weights {self._weights_seq_no} to {num_replicas} replicas "
                    f"did not end within {timeout_s:g} s"
                ) from error
            raise

    def snapshot(self) -> dict[str, Any]:
        self._snapshots.prepare(self._tensors, self._weights_seq_no, {})
        self._tensors, self._sent = [], []
        return self._snapshots.snapshot()

    def close(self) -> None:
        self._tensors, self._sent = [], []
        self._leave_group()

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.destroy()
        self._forget_group()

    def _forget_group(self) -> None:
        """The next broadcast has a group of its own; this one may still hold the thread that sends."""
        self._group = None
        self._members = {}

    def _plan_group(self, replicas: dict[str, int]) -> None:
        self._leave_group()
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


def _broadcast(
    device: int,
    group: Any,
    rendezvous: dict[str, Any],
    tensors: list[tuple[str, torch.Tensor]],
    outcome: Future[Any],
) -> None:
    """Sends ``tensors`` to ``group``, which is joined first if it is None; its ``outcome`` is the group."""
    try:
        torch.cuda.set_device(device)
        joined = private_vllm.join_nccl_group(rendezvous) if group is None else group
        private_vllm.broadcast_packed(tensors, joined)
        torch.cuda.current_stream().synchronize()
    except BaseException as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(joined)


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

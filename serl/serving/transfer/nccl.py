"""Weights broadcast through NCCL from the learner's GPU to the workers of all replicas.

Tensors are gathered from the learners' shards one at a time, as vLLM's packed broadcast asks for them: no GPU
holds the whole policy. A copy of each goes to the host, for replicas that start later.

The NCCL group is fixed: it is made anew when replicas have come or gone since the last broadcast, or if
that failed. A replica that dies during a broadcast leaves the learner's thread waiting in it. What it said
before, or else the deadline, ends the broadcast with an error, and new learners go on from the checkpoint.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import ray
import torch

from serl.private import vllm as private_vllm
from serl.serving.transfer.landing import TRAILER, announcement, with_trailer
from serl.serving.transfer.sender import Weights
from serl.serving.transfer.snapshots import SnapshotWriter

# How often a learner whose broadcast does not end looks whether a replica has given up.
_CHECK_INTERVAL_S = 0.5


class NCCLSender:
    """Rank 0 of the group; the workers of the first replica follow, then those of the second, and so on."""

    def __init__(self, application: str, node_id: str | None = None) -> None:
        self._snapshots = SnapshotWriter(application, node_id)
        self._weights = Weights.of(())
        self._weights_seq_no = 0
        self._members: dict[str, int] = {}
        self._rendezvous: dict[str, Any] = {}
        self._group: Any = None

    def prepare(self, weights: Weights, weights_seq_no: int, replicas: dict[str, int]) -> dict[str, Any]:
        info = announcement(weights.specs, weights_seq_no)
        self._weights, self._weights_seq_no = weights, weights_seq_no
        if replicas != self._members:
            self._plan_group(replicas)
        # The streams that gather do not wait for the one on which the optimizer may still be writing.
        torch.cuda.synchronize()
        return {
            "kind": "nccl",
            "weights_seq_no": weights_seq_no,
            "num_bytes": sum(spec.num_bytes for spec in weights.specs.values()),
            "info": info,
            "group": self._rendezvous,
        }

    def transmit(self, timeout_s: float, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + timeout_s
        outcome: Future[Any] = Future()
        group = (self._group, self._rendezvous) if self._members else None
        arguments = (torch.cuda.current_device(), group, self._gathered(), outcome)
        # A thread that NCCL holds cannot be stopped; as a daemon it does not keep the process alive.
        threading.Thread(target=_broadcast, args=arguments, daemon=True).start()
        try:
            while not wait([outcome], min(_CHECK_INTERVAL_S, max(0.0, deadline - time.monotonic()))).done:
                check()
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"the NCCL broadcast of weights {self._weights_seq_no} to {len(self._members)} "
                        f"replicas did not end within {timeout_s:g} s"
                    )
            self._group = outcome.result()
        except BaseException:
            self._forget_group()
            raise

    def snapshot(self) -> Future[dict[str, Any]]:
        return self._snapshots.write(self._weights_seq_no)

    def _gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The update, on the stream of whoever asks for it: vLLM packs on streams of its own."""
        self._snapshots.begin()
        for name, tensor in with_trailer(self._weights, self._weights_seq_no):
            if name != TRAILER:
                self._snapshots.copy(name, tensor)
            yield name, tensor

    def close(self) -> None:
        self._leave_group()
        self._snapshots.close()

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
    group: tuple[Any, dict[str, Any]] | None,
    tensors: Iterator[tuple[str, torch.Tensor]],
    outcome: Future[Any],
) -> None:
    """Sends ``tensors`` to ``group``; its ``outcome`` is the group that was joined.

    ``group``: the one of before, or None, and the rendezvous of the next one; None where nobody receives.
    """
    joined = None
    try:
        torch.cuda.set_device(device)
        if group is None:
            deque(tensors, maxlen=0)
        else:
            joined = private_vllm.join_nccl_group(group[1]) if group[0] is None else group[0]
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

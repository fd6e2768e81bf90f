"""How weights travel from a learner to the replicas, and how replicas load them."""

from __future__ import annotations

from typing import Literal

import ray
import torch

from serl.serving.transfer.sender import Sender

Transfer = Literal["auto", "shared_memory", "nccl", "ipc"]


def make_sender(transfer: Transfer, application: str) -> Sender:
    """The learner's end of ``transfer`` for the deployment ``application``, in a process of Ray.

    With each but ``shared_memory``, replicas of other hosts may fetch what is in this host's memory. Raises
    ValueError for a transfer between GPUs if this process has none.
    """
    node_id = None if transfer == "shared_memory" else ray.get_runtime_context().get_node_id()
    if transfer in ("auto", "shared_memory"):
        from serl.serving.transfer.shared_memory import SharedMemorySender

        return SharedMemorySender(application, node_id)
    if not torch.cuda.is_available():
        raise ValueError(
            f"serving.weight_transfer={transfer} sends from the learner's GPU, and the learner has none; "
            "auto works without"
        )
    if transfer == "nccl":
        from serl.serving.transfer.nccl import NCCLSender

        return NCCLSender(application, node_id)
    from serl.serving.transfer.ipc import IPCSender

    return IPCSender(application, node_id)

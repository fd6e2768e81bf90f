"""How weights travel from a learner to the replicas, and how replicas load them."""

from __future__ import annotations

from typing import Literal

import torch

from serl.serving.transfer.sender import Sender


def make_sender(transfer: Literal["shared_memory", "nccl", "ipc"], application: str) -> Sender:
    """The learner's end of ``transfer`` for the deployment ``application``.

    Raises ValueError for a transfer between GPUs if this process has none.
    """
    if transfer == "shared_memory":
        from serl.serving.transfer.shared_memory import SharedMemorySender

        return SharedMemorySender(application)
    if not torch.cuda.is_available():
        raise ValueError(
            f"serving.weight_transfer={transfer} sends from the learner's GPU, and the learner has none; "
            "shared_memory works without"
        )
    if transfer == "nccl":
        from serl.serving.transfer.nccl import NCCLSender

        return NCCLSender(application)
    from serl.serving.transfer.ipc import IPCSender

    return IPCSender(application)

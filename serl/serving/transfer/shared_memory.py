"""Weights as safetensors files in shared memory: written by a learner, mapped by the replicas of its host.

A version is a file of its own that appears under its name when it is complete, so a replica that still
reads an old version is never disturbed. The newest ``NUM_KEPT`` stay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from serl.serving.transfer.sender import Peers, Sender

DIRECTORY = Path("/dev/shm")
NUM_KEPT = 2


def weights_path(instance: str, weights_seq_no: int) -> Path:
    """Where version ``weights_seq_no`` of the deployment ``instance`` lies."""
    return DIRECTORY / f"serl-{instance}-{os.getpid()}-{weights_seq_no:08d}.safetensors"

"""Weights as safetensors files in shared memory: written by a learner, mapped by the replicas of its host.

Those of other hosts map a copy, which `serl.serving.fetch` brings there.

A version is a file of its own that gets its name when it is complete, so a replica that still reads an old
version is never disturbed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from serl.serving.transfer.landing import TensorSpec, UpdateError, announcement, with_trailer
from serl.serving.transfer.sender import Weights
from serl.serving.weights_folder import host_id, join_folder, weights_folder

NUM_KEPT_VERSIONS = 2


def read_weights(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a version, by name; they map the file.

    Raises FileNotFoundError if the file is not there, UpdateError if it is damaged.
    """
    try:
        weights = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise UpdateError(f"{path} is not a whole file of weights: {error}") from error
    with weights:
        for name in weights.keys():
            yield name, weights.get_tensor(name)


class SharedMemorySender:
    """Writes versions into the folder of ``application``, keeping the newest two.

    ``node_id``: the node of Ray on which this process is, where other hosts may read them; None: nowhere.
    """

    def __init__(self, application: str, node_id: str | None = None) -> None:
        self._application = application
        self._node_id = node_id
        self._folder = weights_folder(application)
        self._update: dict[str, Any] = {}

    def prepare(self, weights: Weights, weights_seq_no: int, replicas: dict[str, int]) -> dict[str, Any]:
        tensors = _distinct(weights)
        path = self._folder / f"{weights_seq_no:08d}.safetensors"
        unfinished = path.with_suffix(".unfinished")
        join_folder(self._application)
        specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
        info = announcement(specs, weights_seq_no)
        save_file(dict(with_trailer(tensors.items(), weights_seq_no)), unfinished)
        os.replace(unfinished, path)
        self._update = {
            "kind": "shared_memory",
            "weights_seq_no": weights_seq_no,
            "num_bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "info": info,
            "path": str(path),
            "file_bytes": path.stat().st_size,
            "host": host_id(),
            "node_id": self._node_id,
        }
        return self._update

    def transmit(self, timeout_s: float, check: Callable[[], None]) -> None:
        """Nothing to send: the file is complete before it is announced."""

    def snapshot(self) -> Future[dict[str, Any]]:
        done: Future[dict[str, Any]] = Future()
        done.set_result(self.keep_newest())
        return done

    def keep_newest(self) -> dict[str, Any]:
        """Removes what is older than the newest two versions; returns the update of the newest."""
        # By age: learners that resumed from a checkpoint count from a smaller version again.
        versions = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        for old in versions[:-NUM_KEPT_VERSIONS]:
            old.unlink(missing_ok=True)
        return self._update

    def close(self) -> None:
        """Nothing to free: whoever claimed the folder removes it."""


def _distinct(weights: Weights) -> dict[str, torch.Tensor]:
    """Contiguous tensors on CPU, without second names of the same storage (tied embeddings)."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in weights:
        # Compared after the copy: only what `tensors` keeps alive cannot have its address used again.
        copy = tensor.to("cpu")
        storage = (copy.data_ptr(), copy.shape)
        if storage not in seen:
            seen.add(storage)
            tensors[name] = copy
    return tensors

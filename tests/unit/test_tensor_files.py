"""Safetensors files that are written tensor by tensor are what the library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serl.durable_files import digest_of
from serl.learner.tensor_files import write_tensor_file


def test_the_library_reads_what_was_written_tensor_by_tensor(tmp_path: Path):
    tensors = {
        "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "odd": torch.tensor([True, False, True]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "naïve 名": torch.tensor([-0.0, float("inf")], dtype=torch.float64),
    }
    digest = write_tensor_file(tmp_path / "t.safetensors", tensors, iter(tensors.values()))
    assert digest == digest_of(tmp_path / "t.safetensors")
    loaded = load_file(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_a_tensor_that_is_not_as_described_is_refused(tmp_path: Path):
    described = {"weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="weight"):
        write_tensor_file(tmp_path / "t.safetensors", described, iter([torch.zeros(3, 2)]))
    with pytest.raises(ValueError, match="shorter"):
        write_tensor_file(tmp_path / "t.safetensors", described, iter([]))


def test_a_full_disk_is_an_error_and_not_a_shorter_file():
    tensors = {"weight": torch.zeros(1000)}
    with pytest.raises(OSError, match="No space left on device"):
        write_tensor_file(Path("/dev/full"), tensors, iter(tensors.values()))

"""Safetensors files written tensor by tensor and hashed on the way.

``safetensors.torch.save_file`` wants all tensors of a file at once, and its bytes would have to be read again
to be hashed. The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes
without a gap (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from serl.durable_files import FileDigest, hashed_file

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensor_file(path: Path, described: Mapping[str, Tensor], values: Iterator[Tensor]) -> FileDigest:
    """Writes ``values``, which have names, shapes and dtypes of ``described``, in its order.

    Raises OSError if they do not fit on the disk, and ValueError if a value is not as described.
    """
    with hashed_file(path) as file:
        file.write(_header(described))
        for (name, expected), value in zip(described.items(), values, strict=True):
            if value.shape != expected.shape or value.dtype != expected.dtype:
                raise ValueError(f"{name}: {value.dtype} {tuple(value.shape)} is not as it was described")
            content = value.cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(content.numpy().data)
    return file.digest


def _header(described: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in described.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header

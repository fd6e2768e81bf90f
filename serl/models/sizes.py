"""How many weights a policy has, from the headers of its files; none is read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from serl.models.resolve import ModelPathError, gguf_of, ready_folder

_MAX_HEADER_BYTES = 100_000_000


def num_weights(path: str) -> int | None:
    """Of the model that ``model.path`` names; None if it is not on this machine yet.

    Tied weights count once. Raises ModelPathError if there is no such model, or its files are damaged.
    """
    folder = ready_folder(path)
    if folder is not None:
        return sum(_of_safetensors(file) for file in folder.glob("*.safetensors")) or None
    gguf = gguf_of(path)
    return None if gguf is None else _of_gguf(gguf)


def _of_safetensors(file: Path) -> int:
    """The file begins with the length of its header, 8 bytes, and the header, a JSON object."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(min(length, _MAX_HEADER_BYTES)))
            weights = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in weights), default=0)
            count = sum(math.prod(entry["shape"]) for entry in weights)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ModelPathError(f"{file} is not a whole file of weights: {error!r}") from error
    if file.stat().st_size != 8 + length + end:
        raise ModelPathError(
            f"{file} is not a whole file of weights: it has {file.stat().st_size} bytes of {8 + length + end}"
        )
    return count


def _of_gguf(file: Path) -> int | None:
    """None without the package that reads the format, which converting the model needs too."""
    try:
        from gguf import GGUFReader
    except ImportError:
        return None
    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelPathError(f"{file} is not a whole GGUF file: {error!r}") from error

"""Which weights the files of a policy have, and how many, from the headers; none is read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from serl.models.resolve import ModelPathError, gguf_of, ready_folder, weight_files

_MAX_HEADER_BYTES = 100_000_000


def num_weights(path: str) -> int | None:
    """Of the model that ``model.path`` names; None if it is not on this machine yet.

    Tied weights count once. Raises ModelPathError if there is no such model, or its files are damaged.
    """
    folder = ready_folder(path)
    if folder is not None:
        return sum(math.prod(shape) for shape in checkpoint_shapes(folder).values()) or None
    gguf = gguf_of(path)
    return None if gguf is None else _of_gguf(gguf)


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of all that a policy's folder has. Raises ModelPathError if one is damaged."""
    return {name: shape for file in weight_files(folder) for name, shape in file_shapes(file).items()}


def file_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of one safetensors file. Raises ModelPathError if it is damaged."""
    # It begins with the length of its header, 8 bytes, and the header, a JSON object.
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(min(length, _MAX_HEADER_BYTES)))
            weights = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in weights.values()), default=0)
            shapes = {name: tuple(map(int, entry["shape"])) for name, entry in weights.items()}
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ModelPathError(f"{file} is not a whole file of weights: {error!r}") from error
    if file.stat().st_size != 8 + length + end:
        raise ModelPathError(
            f"{file} is not a whole file of weights: it has {file.stat().st_size} bytes of {8 + length + end}"
        )
    return shapes


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

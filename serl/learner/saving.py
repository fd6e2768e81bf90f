"""A learner's state is copied while training stands still, and the copy written while it goes on.

copy_state  every learner: its shards into memory of the CPU
write_state every learner: the copy into files of its own; then the first one: the policy's folder
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers.models.auto.configuration_auto import AutoConfig

from serl.config import LoRASection
from serl.durable_files import FileDigest, digest_of, hashed_file, json_bytes, write_hashed
from serl.learner.state import (
    LEARNER_FILE,
    LEARNER_FOLDER,
    POLICY_FOLDER,
    WEIGHTS,
    LearnerState,
    first_failure,
)
from serl.learner.tensor_files import write_tensor_file
from serl.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX, A, adapter_config

# Files are put together in memory.
_MAX_FILE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class _Copy:
    parts: dict[str, dict[str, Tensor]]
    record: dict[str, object]
    model_dir: Path
    lora: LoRASection | None
    base: str


class StateSaver:
    """Of one learner. ``group``: of all learners, on CPUs, used for nothing else; None for one alone."""

    def __init__(self, device: torch.device, group: ProcessGroup | None) -> None:
        on_gpu = device.type == "cuda"
        options = StagingOptions(
            use_pinned_memory=on_gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=on_gpu,
        )
        # It keeps its memory from one checkpoint to the next.
        self._stager = DefaultStager(options)
        self._group = group
        self._rank = dist.get_rank(group) if group is not None else 0
        self._copy: _Copy | None = None

    def copy(self, state: LearnerState) -> None:
        """To be called when no `write` is under way."""
        parts = self._stager.stage(state.parts())
        assert isinstance(parts, dict)
        policy = state.policy
        self._copy = _Copy(parts, state.record(), policy.model_dir, policy.lora, policy.name)

    def write(self, directory: Path) -> dict[str, FileDigest]:
        """Writes the last `copy` below ``directory``; returns what each file of this learner's holds.

        Every learner must call it. Raises OSError if files cannot be written.
        """
        if self._copy is None:
            raise RuntimeError("write was called before copy")
        copy, self._copy = self._copy, None
        folder, files = directory / LEARNER_FOLDER, list[Path]()
        for part, tensors in copy.parts.items():
            _save_shards(folder / part, tensors, self._group)
            files += (folder / part).glob(f"shard-{self._rank + 1:05}-*.safetensors")
        digests = {file: digest_of(file) for file in files}
        if self._rank == 0:
            digests[folder / LEARNER_FILE] = write_hashed(folder / LEARNER_FILE, json_bytes(copy.record))
            write = _write_policy if copy.lora is None else _write_adapters
            digests |= write(directory / POLICY_FOLDER, copy, folder / WEIGHTS)
        return {file.relative_to(directory).as_posix(): digest for file, digest in digests.items()}


def saved_bytes(state: LearnerState) -> int:
    """What all learners are about to write, but for descriptions and headers."""
    parts = state.parts()
    as_they_are = sum(_num_bytes(tensor, tensor.dtype) for part in parts.values() for tensor in part.values())
    own_dtype = _own_dtype(state.policy.model_dir) if state.policy.lora is None else torch.float32
    return as_they_are + sum(_num_bytes(tensor, own_dtype) for tensor in parts[WEIGHTS].values())


def _save_shards(folder: Path, tensors: dict[str, Tensor], group: ProcessGroup | None) -> None:
    sizes = {name: _num_bytes(tensor, tensor.dtype) for name, tensor in tensors.items()}
    file_numbers = {name: number for number, piece in enumerate(_pieces(sizes), start=1) for name in piece}
    writer = HuggingFaceStorageWriter(str(folder), file_numbers, save_distributed=True)
    try:
        save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise first_failure(error) from error


def _write_policy(folder: Path, copy: _Copy, weights_folder: Path) -> dict[Path, FileDigest]:
    """From the shards that were written before: whole tensors, a piece at a time, in the policy's own dtype.

    One file, or several with an index as transformers names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests = _copy_description(copy.model_dir, folder, left_out=())
    dtype, weights = _own_dtype(copy.model_dir), copy.parts[WEIGHTS]
    pieces = _pieces({name: _num_bytes(weight, dtype) for name, weight in weights.items()})
    index: dict[str, str] = {}
    for number, piece in enumerate(pieces, start=1):
        numbered = f"model-{number:05}-of-{len(pieces):05}.safetensors"
        file = folder / ("model.safetensors" if len(pieces) == 1 else numbered)
        whole = {name: torch.empty(weights[name].shape, dtype=weights[name].dtype) for name in piece}
        load(whole, storage_reader=HuggingFaceStorageReader(str(weights_folder)), no_dist=True)
        described = {name: tensor.to("meta", _saved_dtype(tensor, dtype)) for name, tensor in whole.items()}
        values = (tensor.to(_saved_dtype(tensor, dtype)) for tensor in whole.values())
        digests[file] = write_tensor_file(file, described, values)
        index |= dict.fromkeys(piece, file.name)
    if len(pieces) > 1:
        total = sum(_num_bytes(weight, dtype) for weight in weights.values())
        file = folder / "model.safetensors.index.json"
        content = {"metadata": {"total_size": total}, "weight_map": index}
        digests[file] = write_hashed(file, json_bytes(content))
    return digests


def _write_adapters(folder: Path, copy: _Copy, weights_folder: Path) -> dict[Path, FileDigest]:
    """From the shards that were written before: what PEFT and vLLM load beside the policy's base."""
    assert copy.lora is not None
    folder.mkdir(parents=True, exist_ok=True)
    digests = _copy_description(copy.model_dir, folder, left_out=("config.json", "generation_config.json"))
    whole = {name: torch.empty(weight.shape) for name, weight in copy.parts[WEIGHTS].items()}
    load(whole, storage_reader=HuggingFaceStorageReader(str(weights_folder)), no_dist=True)
    layers = [name.removesuffix(f".{A}.weight") for name in whole if name.endswith(f".{A}.weight")]
    described = {PEFT_PREFIX + name: tensor.to("meta") for name, tensor in whole.items()}
    content = adapter_config(copy.lora, layers, copy.base)
    file, settings = folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG
    digests[file] = write_tensor_file(file, described, iter(whole.values()))
    digests[settings] = write_hashed(settings, json_bytes(content))
    return digests


def _copy_description(source: Path, target: Path, left_out: tuple[str, ...]) -> dict[Path, FileDigest]:
    """Everything that is no weight: configuration, generation defaults, tokenizer, chat template."""
    digests: dict[Path, FileDigest] = {}
    for file in source.iterdir():
        is_weight = file.suffix in {".safetensors", ".bin", ".gguf"} or file.name.endswith(".index.json")
        if file.is_file() and not is_weight and file.name not in left_out:
            copy = target / file.name
            with file.open("rb") as content, hashed_file(copy) as written:
                shutil.copyfileobj(content, written)
            digests[copy] = written.digest
    return digests


def _own_dtype(model_dir: Path) -> torch.dtype:
    """What the policy's configuration says; float32 if it says nothing."""
    dtype = AutoConfig.from_pretrained(model_dir, local_files_only=True).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _saved_dtype(tensor: Tensor, own_dtype: torch.dtype) -> torch.dtype:
    return own_dtype if tensor.dtype.is_floating_point else tensor.dtype


def _num_bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """Of the whole ``tensor`` if its numbers are saved as ``dtype``."""
    return tensor.numel() * _saved_dtype(tensor, dtype).itemsize


def _pieces(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in their order, by the files of at most ``_MAX_FILE_BYTES`` that hold them."""
    pieces: list[list[str]] = [[]]
    num_bytes = 0
    for name, size in sizes.items():
        if pieces[-1] and num_bytes + size > _MAX_FILE_BYTES:
            pieces.append([])
            num_bytes = 0
        pieces[-1].append(name)
        num_bytes += size
    return pieces

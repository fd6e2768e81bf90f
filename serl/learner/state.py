"""A learner's part of a checkpoint, as safetensors and JSON only.

    policy/   config.json, model*.safetensors in the policy's own dtype, tokenizer files: `transformers` and
              vLLM load it as it is. With ``model.lora`` PEFT's adapter_config.json and
              adapter_model.safetensors in place of the first two
    learner/  weights/, teacher/, exp_avg/, exp_avg_sq/: one folder a part, as they are in the learners;
              learner.json. With ``model.lora`` adapters alone

`torch.distributed.checkpoint` writes and reads the parts: each learner its shards, whose places in the whole
tensors are in the files' headers. So another number of learners can load a checkpoint; all of them must see
the folder. Its own format keeps the places in a pickle, so the one for safetensors is used
(``HuggingFaceStorageWriter``).

Nothing else in a learner is random or counted: dropout is off, minibatches come from the experiment's seed,
and λ, the teacher's clock and the learning rate from the algorithm's count of updates.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from serl.config import LoRASection
from serl.learner.adapters import Scorer
from serl.learner.optimizer import OptimizerStep
from serl.learner.rl_module import CausalLMModule

POLICY_FOLDER = "policy"
LEARNER_FOLDER = "learner"
LEARNER_FILE = "learner.json"
WEIGHTS, TEACHER = "weights", "teacher"
_MOMENTS = ("exp_avg", "exp_avg_sq")

# One learner has nobody to ask, and nothing to be warned of.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class LearnerStateError(ValueError):
    """A checkpoint is damaged or belongs to another policy."""


@dataclass(frozen=True, slots=True)
class LearnerState:
    """What a learner saves: references, not copies."""

    policy: CausalLMModule
    teacher: Scorer | None
    optimizer: torch.optim.Optimizer
    optimizer_step: OptimizerStep

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Detached tensors by part and by name; without moments before the first optimizer step."""
        weights = self.policy.trained_weights()
        parts = {WEIGHTS: weights}
        if self.teacher is not None:
            parts[TEACHER] = self.teacher.trained_weights()
        moments = self._moments(weights)
        for moment in _MOMENTS if moments else ():
            parts[moment] = {name: found[moment] for name, found in moments.items()}
        return {
            part: {name: tensor.detach() for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }

    def record(self) -> dict[str, object]:
        """What ``learner.json`` holds."""
        moments = self._moments(self.policy.trained_weights())
        return {
            "is_sharded": True,
            "lora": self.policy.lora and self.policy.lora.fixed,
            "has_teacher": self.teacher is not None,
            "num_optimizer_steps": max((int(moment["step"]) for moment in moments.values()), default=0),
            "num_consecutive_skipped": self.optimizer_step.num_consecutive_skipped,
        }

    def reset_moments(self, num_steps: int) -> None:
        """Moments of 0 after ``num_steps`` optimizer steps, for the parameters that are trained."""
        trained = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        for weight in self.policy.trained_weights().values():
            if id(weight) in trained:
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(num_steps), device=weight.device),
                    **{name: torch.zeros_like(weight, requires_grad=False) for name in _MOMENTS},
                }

    def _moments(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        state = self.optimizer.state
        return {name: state[weight] for name, weight in weights.items() if weight in state}


def load_state(directory: Path, state: LearnerState, group: ProcessGroup | None = None) -> bool:
    """Fills ``state`` from a checkpoint; returns whether the checkpoint has a teacher.

    Every learner must call it, with a ``group`` of all of them that lives on CPUs, None for one alone. Raises
    LearnerStateError for a damaged or foreign checkpoint.
    """
    folder = directory / LEARNER_FOLDER
    try:
        record = json.loads((folder / LEARNER_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise LearnerStateError(f"{folder} is not a learner's checkpoint: {error}") from error
    _require_same_adapters(directory, state.policy.lora, record.get("lora"))
    if record["num_optimizer_steps"] > 0:
        state.reset_moments(record["num_optimizer_steps"])
    for part, tensors in state.parts().items():
        if (part == TEACHER and not record["has_teacher"]) or (
            part in _MOMENTS and record["num_optimizer_steps"] == 0
        ):
            continue
        if record.get("is_sharded"):
            read_tensors(HuggingFaceStorageReader(str(folder / part)), tensors, group)
        else:
            read_tensors(_former_reader(directory, part), tensors, group)
    state.optimizer_step.num_consecutive_skipped = record["num_consecutive_skipped"]
    return bool(record["has_teacher"])


def _require_same_adapters(directory: Path, lora: LoRASection | None, saved: dict[str, Any] | None) -> None:
    own = lora and lora.fixed
    if own != saved:
        raise LearnerStateError(
            f"{directory} was saved with model.lora = {json.dumps(saved)}, this run has {json.dumps(own)}: "
            "only one with the same can resume from it"
        )


def read_tensors(
    reader: HuggingFaceStorageReader, tensors: Mapping[str, Tensor], group: ProcessGroup | None
) -> None:
    """Fills ``tensors``, whole ones or shards, which must be all that ``reader`` has; see `load_state`."""
    try:
        found = reader.read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise LearnerStateError(f"{reader.path} cannot be read: {error}") from error
    if missing := tensors.keys() - found.keys():
        raise LearnerStateError(f"{reader.path} lacks {len(missing)} tensors, such as {min(missing)}")
    for name, stored in found.items():
        assert isinstance(stored, TensorStorageMetadata)  # safetensors hold nothing else
        if name not in tensors or tensors[name].shape != stored.size:
            raise LearnerStateError(f"{reader.path} holds {name} {tuple(stored.size)}, the policy does not")
        if sum(math.prod(chunk.sizes) for chunk in stored.chunks) != math.prod(stored.size):
            raise LearnerStateError(f"{reader.path} lacks a part of {name}")
    try:
        load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise LearnerStateError(f"{reader.path} cannot be read: {first_failure(error)}") from error


def first_failure(error: CheckpointException) -> BaseException:
    """What went wrong on the first of the learners that failed."""
    return error.failures[min(error.failures)][0]


def _former_reader(directory: Path, part: str) -> HuggingFaceStorageReader:
    """Of a part as it was before it had a folder: whole tensors in float32, the weights in ``policy/``."""
    folder, stem = (POLICY_FOLDER, "model") if part == WEIGHTS else (LEARNER_FOLDER, part)
    reader = HuggingFaceStorageReader(str(directory / folder))
    reader.fs = _FilesOf(stem)
    return reader


class _FilesOf(FileSystem):
    """Sees only ``STEM.safetensors`` and ``STEM-00001-of-00002.safetensors``."""

    def __init__(self, stem: str) -> None:
        self._is_seen = re.compile(rf"{stem}(-\d+-of-\d+)?\.safetensors").fullmatch

    def ls(self, path: str) -> list[str]:
        return [file for file in super().ls(path) if self._is_seen(Path(file).name)]

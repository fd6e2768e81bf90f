"""A learner's part of a checkpoint, as safetensors and JSON only.

    policy/   config.json, model*.safetensors, tokenizer files: `transformers` and vLLM load it as it is
    learner/  teacher*.safetensors, exp_avg*.safetensors, exp_avg_sq*.safetensors, learner.json

Tensors are whole: the first learner writes what all of them gather, every learner reads and keeps its
shard. So another number of learners can load a checkpoint; all of them must see the folder. Nothing else in
a learner is random or counted: dropout is off, minibatches come from the experiment's seed, and λ, the
teacher's clock and the learning rate from the algorithm's count of updates.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serl.durable_files import FileDigest, digest_of, json_bytes, write_hashed
from serl.learner.optimizer import OptimizerStep
from serl.learner.parallel import copy_whole_into, full_tensors
from serl.learner.rl_module import CausalLMModule
from serl.learner.tensor_files import write_tensor_file
from serl.models.weights import named_weights

POLICY_FOLDER = "policy"
LEARNER_FOLDER = "learner"
_LEARNER_FILE = "learner.json"
_MAX_SHARD_BYTES = 4 * 2**30
_MOMENTS = ("exp_avg", "exp_avg_sq")


class LearnerStateError(ValueError):
    """A checkpoint is damaged or belongs to another policy."""


@dataclass(frozen=True, slots=True)
class LearnerState:
    """What a learner saves: references, not copies."""

    policy: CausalLMModule
    teacher: CausalLMModule | None
    optimizer: torch.optim.Optimizer
    optimizer_step: OptimizerStep


def saved_bytes(state: LearnerState) -> int:
    """What `save_state` is about to write, but for descriptions and headers."""
    weights = named_weights(state.policy.model)
    tensors = list(weights.values())
    if state.teacher is not None:
        tensors += named_weights(state.teacher.model).values()
    for moment in _moments(state.optimizer, weights).values():
        tensors += [moment[name] for name in _MOMENTS]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def save_state(directory: Path, state: LearnerState, is_writer: bool) -> dict[str, FileDigest]:
    """Writes ``policy/`` and ``learner/`` below ``directory``; returns what each file holds.

    Every learner must call it, since tensors are gathered; only the writer touches files, and only it has
    anything to return.
    """
    digests: dict[str, FileDigest] = {}
    policy_folder, learner_folder = directory / POLICY_FOLDER, directory / LEARNER_FOLDER
    weights = named_weights(state.policy.model)
    if is_writer:
        policy_folder.mkdir(parents=True, exist_ok=True)
        learner_folder.mkdir(parents=True, exist_ok=True)
        digests |= _copy_description(state.policy.model_dir, policy_folder)
    digests |= _write_tensors(policy_folder, "model", weights, is_writer)
    if state.teacher is not None:
        teacher = named_weights(state.teacher.model)
        digests |= _write_tensors(learner_folder, "teacher", teacher, is_writer)
    moments = _moments(state.optimizer, weights)
    for name in _MOMENTS:
        tensors = {key: moment[name] for key, moment in moments.items()}
        digests |= _write_tensors(learner_folder, name, tensors, is_writer)
    if is_writer:
        record = {
            "has_teacher": state.teacher is not None,
            "num_optimizer_steps": _num_steps(moments),
            "num_consecutive_skipped": state.optimizer_step.num_consecutive_skipped,
        }
        file = learner_folder / _LEARNER_FILE
        digests[_in_checkpoint(file)] = write_hashed(file, json_bytes(record))
    return digests


def load_state(directory: Path, state: LearnerState) -> bool:
    """Fills ``state`` from a checkpoint; returns whether the checkpoint has a teacher.

    Raises LearnerStateError for a damaged or foreign checkpoint.
    """
    learner_folder = directory / LEARNER_FOLDER
    try:
        record = json.loads((learner_folder / _LEARNER_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise LearnerStateError(f"{learner_folder} is not a learner's checkpoint: {error}") from error
    weights = named_weights(state.policy.model)
    _read_tensors(directory / POLICY_FOLDER, "model", weights)
    if record["has_teacher"] and state.teacher is not None:
        _read_tensors(learner_folder, "teacher", named_weights(state.teacher.model))
    if record["num_optimizer_steps"] > 0:
        moments = _fresh_moments(state.optimizer, weights, record["num_optimizer_steps"])
        for name in _MOMENTS:
            _read_tensors(learner_folder, name, {key: moment[name] for key, moment in moments.items()})
    state.optimizer_step.num_consecutive_skipped = record["num_consecutive_skipped"]
    return bool(record["has_teacher"])


def _in_checkpoint(file: Path) -> str:
    """``policy/NAME`` or ``learner/NAME``."""
    return f"{file.parent.name}/{file.name}"


def _copy_description(source: Path, target: Path) -> dict[str, FileDigest]:
    """Everything that is no weight: configuration, generation defaults, tokenizer, chat template."""
    digests: dict[str, FileDigest] = {}
    for file in source.iterdir():
        is_weight = file.suffix in {".safetensors", ".bin", ".gguf"} or file.name.endswith(".index.json")
        if file.is_file() and not is_weight:
            copy = Path(shutil.copyfile(file, target / file.name))
            digests[_in_checkpoint(copy)] = digest_of(copy)
    return digests


def _moments(optimizer: torch.optim.Optimizer, weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {name: optimizer.state[weight] for name, weight in weights.items() if weight in optimizer.state}


def _num_steps(moments: dict[str, dict[str, Tensor]]) -> int:
    return max((int(moment["step"]) for moment in moments.values()), default=0)


def _fresh_moments(
    optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], num_steps: int
) -> dict[str, dict[str, Tensor]]:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for weight in weights.values():
        if id(weight) in trained:
            optimizer.state[weight] = {
                "step": torch.tensor(float(num_steps), device=weight.device),
                **{name: torch.zeros_like(weight, requires_grad=False) for name in _MOMENTS},
            }
    return _moments(optimizer, weights)


def _write_tensors(
    folder: Path, stem: str, tensors: dict[str, Tensor], is_writer: bool
) -> dict[str, FileDigest]:
    """One file, or several with an index as transformers names them, in pieces of bounded size."""
    pieces = _pieces(tensors)
    digests: dict[str, FileDigest] = {}
    index: dict[str, str] = {}
    for number, piece in enumerate(pieces, start=1):
        numbered = f"{stem}-{number:05}-of-{len(pieces):05}.safetensors"
        file = folder / (f"{stem}.safetensors" if len(pieces) == 1 else numbered)
        values = (tensor for _, tensor in full_tensors(piece))
        try:
            if is_writer:
                digests[_in_checkpoint(file)] = write_tensor_file(file, piece, values)
                index |= dict.fromkeys(piece, file.name)
        finally:
            # The other learners are in the middle of gathering, whatever happened here.
            for _ in values:
                pass
    if is_writer and len(pieces) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        file = folder / f"{stem}.safetensors.index.json"
        content = {"metadata": {"total_size": total}, "weight_map": index}
        digests[_in_checkpoint(file)] = write_hashed(file, json_bytes(content))
    return digests


def _pieces(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    pieces: list[dict[str, Tensor]] = [{}]
    num_bytes = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if pieces[-1] and num_bytes + size > _MAX_SHARD_BYTES:
            pieces.append({})
            num_bytes = 0
        pieces[-1][name] = tensor
        num_bytes += size
    return pieces


def _read_tensors(folder: Path, stem: str, targets: dict[str, Tensor]) -> None:
    missing = set(targets)
    for name, tensor in _stored_tensors(folder, stem):
        if name not in targets or targets[name].shape != tensor.shape:
            raise LearnerStateError(
                f"{folder}: {stem} holds {name} {tuple(tensor.shape)}, the policy does not"
            )
        copy_whole_into(targets[name], tensor)
        missing.discard(name)
    if missing:
        raise LearnerStateError(f"{folder}: {stem} lacks {len(missing)} tensors, such as {min(missing)}")


def _stored_tensors(folder: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
    for file in sorted([*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")]):
        try:
            with safe_open(file, framework="pt", device="cpu") as stored:
                for name in stored.keys():  # noqa: SIM118
                    yield name, stored.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise LearnerStateError(f"{file} cannot be read: {error}") from error

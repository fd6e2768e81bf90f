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
from safetensors.torch import save_file
from torch import Tensor

from serl.learner.optimizer import OptimizerStep
from serl.learner.parallel import copy_whole_into, full_tensors
from serl.learner.rl_module import CausalLMModule
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


def save_state(directory: Path, state: LearnerState, is_writer: bool) -> None:
    """Writes ``policy/`` and ``learner/`` below ``directory``.

    Every learner must call it, since tensors are gathered; only the writer touches files.
    """
    policy_folder, learner_folder = directory / POLICY_FOLDER, directory / LEARNER_FOLDER
    weights = named_weights(state.policy.model)
    if is_writer:
        policy_folder.mkdir(parents=True, exist_ok=True)
        learner_folder.mkdir(parents=True, exist_ok=True)
        _copy_description(state.policy.model_dir, policy_folder)
    _write_tensors(policy_folder, "model", weights, is_writer)
    if state.teacher is not None:
        _write_tensors(learner_folder, "teacher", named_weights(state.teacher.model), is_writer)
    moments = _moments(state.optimizer, weights)
    for name in _MOMENTS:
        tensors = {key: moment[name] for key, moment in moments.items()}
        _write_tensors(learner_folder, name, tensors, is_writer)
    if is_writer:
        record = {
            "has_teacher": state.teacher is not None,
            "num_optimizer_steps": _num_steps(moments),
            "num_consecutive_skipped": state.optimizer_step.num_consecutive_skipped,
        }
        (learner_folder / _LEARNER_FILE).write_text(json.dumps(record, indent=1))


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


def _copy_description(source: Path, target: Path) -> None:
    """Everything that is no weight: configuration, generation defaults, tokenizer, chat template."""
    for file in source.iterdir():
        is_weight = file.suffix in {".safetensors", ".bin", ".gguf"} or file.name.endswith(".index.json")
        if file.is_file() and not is_weight:
            shutil.copyfile(file, target / file.name)


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


def _write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor], is_writer: bool) -> None:
    """One file, or several with an index as transformers names them, in pieces of bounded size."""
    pieces = _pieces(tensors)
    index: dict[str, str] = {}
    for number, piece in enumerate(pieces, start=1):
        gathered = {name: tensor.cpu().contiguous() for name, tensor in full_tensors(piece)}
        if is_writer:
            file = (
                f"{stem}.safetensors"
                if len(pieces) == 1
                else f"{stem}-{number:05}-of-{len(pieces):05}.safetensors"
            )
            save_file(gathered, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(piece, file)
    if is_writer and len(pieces) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        (folder / f"{stem}.safetensors.index.json").write_text(text)


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

"""New weights on the way to replicas that are generating: whole ones, and adapters alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from serl.config import ExperimentConfig, LoRASection
from serl.learner.parallel import full_tensors
from serl.models.lora import adapter_shapes
from serl.models.weights import named_weights
from serl.serving.transfer.sender import Weights
from serl.serving.transfer.shared_memory import SharedMemorySender
from serl.serving.weights import WeightPublisher
from serl.serving.weights_folder import claim_folder, release_folder
from tools.bench.figures import Figures
from tools.bench.play import Player, local_cluster, player_on_deployment, with_settings

# A deployment that no replica reads: what writing alone costs.
_SCRATCH = "bench-scratch"
# Between two broadcasts, so that the engine is generating again when the next one comes.
_PLAY_S = 1.0
_MEMCPY_ROUNDS = 3


def broadcast(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """Of adapters those of the experiment's ``model.lora``, or of its defaults."""
    lora = (experiment.model.lora or LoRASection()).model_copy(update={"broadcast": "adapters"})
    whole = with_settings(experiment, model={"lora": None})
    adapted = with_settings(experiment, model={"lora": lora})
    adapters = {name: torch.randn(shape) for name, shape in adapter_shapes(str(model_dir), lora).items()}
    with local_cluster() as run_dir:
        _measure(whole, model_dir, run_dir, _weights(model_dir), "", options.repetitions, figures)
        name = f"adapters of rank {lora.rank}, "
        _measure(adapted, model_dir, run_dir, adapters, name, options.repetitions, figures)
    figures.add_ratio("transport", "memcpy", at_most=3.0)
    figures.add_ratio("writing", "memcpy")
    figures.add_ratio("vLLM's own load", "broadcast")
    figures.add_ratio("generation stood still", "vLLM's own load")
    figures.add_ratio(f"{name}bytes", "bytes")
    figures.add_ratio(f"{name}broadcast", "broadcast")


def _measure(
    experiment: ExperimentConfig,
    model_dir: Path,
    run_dir: Path,
    tensors: Mapping[str, Tensor],
    name: str,
    repetitions: int,
    figures: Figures,
) -> None:
    copies = {tensor_name: torch.zeros_like(tensor) for tensor_name, tensor in tensors.items()}
    seconds: list[dict[str, float]] = []
    claim_folder(_SCRATCH)
    try:
        scratch = SharedMemorySender(_SCRATCH)
        scratch.prepare(Weights.of(tensors.items()), 1, {})
        with player_on_deployment(experiment, model_dir, run_dir) as (player, names):
            publisher = WeightPublisher(names, "shared_memory", experiment.serving.update_timeout_s)
            # The first one also brings the replica's code into memory.
            stats = publisher.publish(Weights.of(tensors.items()), 1).stats
            for version in range(2, 2 + repetitions):
                _generate(player)
                own = {
                    "memcpy": _seconds_of_memcpy(tensors, copies),
                    "writing": _seconds_of_writing(scratch, tensors, version),
                }
                started = time.perf_counter()
                stats = publisher.publish(Weights.of(tensors.items()), version).stats
                own["broadcast"] = time.perf_counter() - started
                own["transport"] = stats.seconds_transport
                own["vLLM's own load"] = stats.seconds_load
                own["generation stood still"] = stats.seconds_paused
                seconds.append({name + what: taken for what, taken in own.items()})
            player.finish()
            publisher.close()
    finally:
        release_folder(_SCRATCH)
    figures.note(
        f"{experiment.model.path}: {name}{stats.num_bytes / 1e6:.1f} MB, {stats.num_replicas} replica, "
        f"{player.capacity} episodes going on, {repetitions} broadcasts"
    )
    figures.add(f"{name}bytes", [stats.num_bytes / 1e6], "MB")
    figures.add_all(seconds, "ms", scale=1000.0)


def _weights(model_dir: Path) -> dict[str, Tensor]:
    """What a learner publishes: every tensor once, under its Hugging Face name."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    return dict(full_tensors(named_weights(model)))


def _generate(player: Player) -> None:
    started = time.perf_counter()
    while time.perf_counter() - started < _PLAY_S:
        player.keep_full(timeout_s=0.1)


def _seconds_of_memcpy(tensors: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> float:
    """Into memory that is there already."""
    seconds = []
    for _ in range(_MEMCPY_ROUNDS):
        started = time.perf_counter()
        for name, tensor in tensors.items():
            copies[name].copy_(tensor)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _seconds_of_writing(sender: SharedMemorySender, tensors: Mapping[str, Tensor], version: int) -> float:
    started = time.perf_counter()
    sender.prepare(Weights.of(tensors.items()), version, {})
    seconds = time.perf_counter() - started
    sender.keep_newest()
    return seconds

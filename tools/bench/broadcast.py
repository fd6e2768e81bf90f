"""Weights from a learner's tensors into the replicas, against one copy of the same bytes in memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from serl.config import ExperimentConfig
from serl.learner.parallel import full_tensors
from serl.models.weights import named_weights
from serl.serving.transfer.shared_memory import SharedMemorySender, claim_folder, release_folder
from serl.serving.weights import BroadcastStats, WeightPublisher
from tools.bench.arguments import experiment_of, model_folder
from tools.bench.cluster import local_cluster
from tools.bench.figures import Figures
from tools.bench.play import Player, player_on_deployment

TRANSPORT_GOAL = 3.0

# A deployment that no replica reads: what writing alone costs.
_SCRATCH = "bench-scratch"
# Between two broadcasts, so that the engine is generating again when the next one comes.
_PLAY_S = 1.0
_MEMCPY_ROUNDS = 3


def run(options: argparse.Namespace, figures: Figures) -> None:
    experiments = [experiment_of(options, model) for model in _models(options)]
    folders = [model_folder(experiment) for experiment in experiments]
    with local_cluster() as run_dir:
        for experiment, model_dir in zip(experiments, folders, strict=True):
            _measure(experiment, model_dir, run_dir, options.repetitions, figures)


def _models(options: argparse.Namespace) -> Sequence[str]:
    return [options.model] if isinstance(options.model, str) else options.model


def _measure(
    experiment: ExperimentConfig, model_dir: Path, run_dir: Path, repetitions: int, figures: Figures
) -> None:
    tensors = _weights(model_dir)
    copies = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    memcpy, written, waited, stats = [], [], [], []
    claim_folder(_SCRATCH)
    try:
        scratch = SharedMemorySender(_SCRATCH)
        with player_on_deployment(experiment, model_dir, run_dir) as (player, names):
            publisher = WeightPublisher(names, "shared_memory", experiment.serving.update_timeout_s)
            # The first one also brings the replica's code into memory.
            publisher.publish(tensors.items(), 1)
            scratch.prepare(tensors.items(), 1, {})
            for version in range(2, 2 + repetitions):
                _generate(player)
                memcpy.append(_seconds_of_memcpy(tensors, copies))
                written.append(_seconds_of_writing(scratch, tensors, version))
                started = time.perf_counter()
                stats.append(publisher.publish(tensors.items(), version))
                waited.append(time.perf_counter() - started)
            player.finish()
            publisher.close()
    finally:
        release_folder(_SCRATCH)
    figures.note(
        f"{experiment.model.path}: {stats[0].num_bytes / 1e6:.1f} MB, {stats[0].num_replicas} replica, "
        f"{player.capacity} episodes going on, {repetitions} broadcasts"
    )
    _report(experiment.model.path, memcpy, written, waited, stats, figures)


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


def _seconds_of_memcpy(tensors: dict[str, Tensor], copies: dict[str, Tensor]) -> float:
    """Into memory that is there already."""
    seconds = []
    for _ in range(_MEMCPY_ROUNDS):
        started = time.perf_counter()
        for name, tensor in tensors.items():
            copies[name].copy_(tensor)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _seconds_of_writing(sender: SharedMemorySender, tensors: dict[str, Tensor], version: int) -> float:
    started = time.perf_counter()
    sender.prepare(tensors.items(), version, {})
    seconds = time.perf_counter() - started
    sender.snapshot()
    return seconds


def _report(
    model: str,
    memcpy: list[float],
    written: list[float],
    waited: list[float],
    stats: list[BroadcastStats],
    figures: Figures,
) -> None:
    name = model.rpartition(":")[2]
    transport = [one.seconds_transport for one in stats]
    load = [one.seconds_load for one in stats]
    paused = [one.seconds_paused for one in stats]
    for what, seconds in (
        ("memcpy", memcpy),
        ("transport", transport),
        ("of it, writing", written),
        ("vLLM's own load", load),
        ("generation stood still", paused),
        ("broadcast", waited),
    ):
        figures.add(f"{name}: {what}", [1000.0 * one for one in seconds], "ms")
    figures.add_ratio(f"{name}: transport / memcpy", transport, memcpy, at_most=TRANSPORT_GOAL)
    figures.add_ratio(f"{name}: writing / memcpy", written, memcpy)
    figures.add_ratio(f"{name}: vLLM's load / broadcast", load, waited)
    figures.add_ratio(f"{name}: stood still / vLLM's load", paused, load)

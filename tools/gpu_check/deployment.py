"""A policy deployment on Ray, and a learner's end in an actor: weights from GPU to GPU, landed or not."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from serl.models.weights import named_weights
from serl.run.closed_cluster import start_closed_cluster
from serl.serving.client import PolicyClient
from serl.serving.names import ServingNames
from serl.serving.start import start_serving, stop_serving, wait_until_ready
from serl.serving.transfer.sender import Weights
from serl.serving.weights import BroadcastStats, WeightPublisher
from serl.types import Completion, Sampling
from tools.gpu_check.policy import CONTRAST, TOLERANCE, make_experiment, make_policy, mismatch, save_policy
from tools.gpu_check.results import Report, require

_TIMEOUT_S = 150.0
_FREE = Sampling(temperature=1.0, max_tokens=24, stop=(), seed=None)
_PROMPTS = [[100 + number, *range(300, 340)] for number in range(16)]
_VERSIONS = (1, 2)


def ipc(report: Report, folder: Path, num_gpus: int) -> None:
    """Learner and replica share one GPU; without one, weights go through shared memory.

    The last weights reach an engine that has given its memory back.
    """
    transfer = "ipc" if num_gpus else "shared_memory"
    figures = _check("ipc", transfer, 0.4 if num_gpus else 0.0, report, folder)
    require(figures.freed_bytes > 0 or not num_gpus, "an engine that sleeps gave no memory back")
    report.passed("sleep mode", freed_MB=figures.freed_bytes / 1e6, paused_s=figures.stats.seconds_paused)


def nccl(report: Report, folder: Path, num_gpus: int) -> None:
    """Learner and replica have a GPU each."""
    _check("nccl", "nccl", 1.0, report, folder)


def _check(part: str, transfer: str, num_gpus: float, report: Report, folder: Path) -> _Update:
    """What the last of the updates took."""
    model_dir = save_policy(folder / "policy", 0)
    learner = {"num_learners": 1}
    serving = {"weight_transfer": transfer, "sleep_during_updates": transfer == "ipc"}
    experiment = make_experiment(model_dir, num_gpus, serving=serving, learner=learner)
    start_closed_cluster(include_dashboard=False, logging_level=logging.ERROR)
    # Serve's handles belong to the loop that uses them, and stopping waits for it.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    names = start_serving(experiment, str(model_dir), str(folder))
    try:
        wait_until_ready(names, _TIMEOUT_S)
        publisher = ray.remote(_Publisher).options(num_cpus=0, num_gpus=num_gpus).remote(names, transfer)
        sampling = asyncio.run_coroutine_threadsafe(_around_updates(names, publisher), loop)
        completions, updates = sampling.result(_TIMEOUT_S)
    finally:
        stop_serving(names)
        ray.shutdown()
    tolerance = TOLERANCE[experiment.model.dtype]
    worst = 0.0
    for version, answers in enumerate(completions):
        for other in range(len(completions)):
            missed = _worst(answers, other)
            if other == version:
                require(missed < tolerance, f"weights {version} are missed by {missed:.3g} nats")
                worst = max(worst, missed)
            else:
                require(
                    missed > CONTRAST * tolerance, f"weights {version} also fit {other}: {missed:.3g} nats"
                )
    stats = updates[0].stats
    figures = {"broadcast_s": stats.seconds_transport, "load_s": stats.seconds_load}
    report.passed(part, through=transfer, mismatch=worst, **figures, MB=stats.num_bytes / 1e6)
    return updates[-1]


async def _around_updates(
    names: ServingNames, publisher: Any
) -> tuple[list[list[Completion]], list[_Update]]:
    """What was sampled of each version, from that of the files on, and what each update took."""
    client = PolicyClient(names)

    async def ask() -> list[Completion]:
        calls = [client.generate(prompt, _FREE, str(prompt[0]), _TIMEOUT_S) for prompt in _PROMPTS]
        return await asyncio.gather(*calls)

    completions, updates = [await ask()], []
    for version in _VERSIONS:
        update = publisher.update.remote(version, version == _VERSIONS[-1])
        updates.append(await asyncio.wait_for(update, _TIMEOUT_S))
        completions.append(await ask())
    return completions, updates


@dataclass(frozen=True, slots=True)
class _Update:
    """``freed_bytes``: what the GPU had more while the engine slept."""

    stats: BroadcastStats
    freed_bytes: int = 0


class _Publisher:
    """What of a learner sends weights."""

    def __init__(self, names: ServingNames, transfer: Any) -> None:
        self._publisher = WeightPublisher(names, transfer, _TIMEOUT_S)
        self._transfer = transfer
        on_gpu = transfer != "shared_memory"
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._dtype = torch.bfloat16 if on_gpu else torch.float32

    def update(self, version: int, is_last: bool) -> _Update:
        """Publishes ``version``; the last one, unless it goes to another GPU, to engines that sleep."""
        freed = 0
        if is_last and self._transfer != "nccl":
            before = self._free_bytes()
            self._publisher.put_to_sleep()
            freed = self._free_bytes() - before
        return _Update(self._publish(version), freed)

    def _free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0] if self._device.type == "cuda" else 0

    def _publish(self, version: int) -> BroadcastStats:
        weights = named_weights(make_policy(version))
        tensors = [(name, weight.to(self._device, self._dtype)) for name, weight in weights.items()]
        return self._publisher.publish(Weights.of(tensors), version).stats


def _worst(completions: list[Completion], version: int) -> float:
    policy = make_policy(version)
    pairs = zip(_PROMPTS, completions, strict=True)
    return max(mismatch(policy, prompt, one.token_ids, one.logprobs) for prompt, one in pairs)

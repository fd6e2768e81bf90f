"""What learners compute: bfloat16 and flash attention against float32 on a processor, and shards."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from serl.algorithm import SERLConfig
from serl.batch.assemble import build_rows
from serl.config import ExperimentConfig
from serl.learner.learner_group import SERLLearnerGroup
from serl.learner.rl_module import CausalLMModule, module_config
from serl.learner.token_batch import make_token_batch
from serl.rollout.prompt import PromptEncoder
from serl.run.closed_cluster import start_closed_cluster
from serl.types import Step, Task, Trajectory, TrajectoryGroup, VersionSpan
from tools.gpu_check.policy import TOLERANCE, make_experiment, save_policy
from tools.gpu_check.results import Report, require

_TIMEOUT_S = 120.0
_MIN_COSINE = 0.99
_LENGTHS = (17, 64, 128, 40)
_NUM_SCORED = 16
_COMPARED = ("loss", "grad_norm", "entropy", "teacher_weight_mean", "num_trained_tokens")


def bfloat16(report: Report, folder: Path, num_gpus: int) -> None:
    _compare("bfloat16", "sdpa", report, folder, "cuda" if num_gpus else "cpu")


def flash_attention_2(report: Report, folder: Path, num_gpus: int) -> None:
    _compare("flash attention 2", "flash_attention_2", report, folder, "cuda")


def flash_attention_4(report: Report, folder: Path, num_gpus: int) -> None:
    _compare("flash attention 4", "flash_attention_4", report, folder, "cuda")


def _compare(part: str, attention: str, report: Report, folder: Path, device: str) -> None:
    """Log-probs and the gradient of their sum, of rows of unlike lengths."""
    model_dir = save_policy(folder / "policy", 0)
    expected, expected_gradient, _ = _scored(model_dir, "sdpa", "cpu", lower=False)
    found, gradient, seconds = _scored(model_dir, attention, device, lower=True)
    missed = float((found - expected).abs().max())
    cosine = float(torch.nn.functional.cosine_similarity(gradient, expected_gradient, dim=0))
    require(missed < TOLERANCE["bfloat16"], f"log-probs miss those in float32 by {missed:.3g} nats")
    require(cosine > _MIN_COSINE, f"the gradient's cosine with that in float32 is {cosine:.4f}")
    figures: dict[str, float] = {"mismatch": missed, "gradient_cosine": cosine}
    if device == "cuda":
        figures["peak_MB"] = torch.cuda.max_memory_allocated() / 1e6
    report.passed(part, **figures, tokens_per_s=sum(_LENGTHS) / seconds)


def _scored(model_dir: Path, attention: str, device: str, lower: bool) -> tuple[Tensor, Tensor, float]:
    """Log-probs and the gradient on the CPU, and the seconds of a second pass."""
    experiment = learning_experiment(model_dir, num_learners=0, num_gpus=0)
    settings = module_config(experiment, str(model_dir)) | {"attention": attention}
    module = CausalLMModule(observation_space=None, action_space=None, model_config=settings).to(device)
    rows = [[3 + (7 * number + place) % 800 for place in range(n)] for number, n in enumerate(_LENGTHS)]
    batch = make_token_batch(
        [row[:-_NUM_SCORED] for row in rows],
        [row[-_NUM_SCORED:] for row in rows],
        None,
        layout=module.layout,
        device=device,
    )
    for _ in range(2):
        module.zero_grad()
        started = time.monotonic()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=lower):
            logprobs = module(batch).logprobs
        logprobs.sum().backward()
        values = logprobs.detach().cpu()  # waits for the device
        seconds = time.monotonic() - started
    gradients = [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
    return values, torch.cat(gradients).float().cpu(), seconds


def fsdp2(report: Report, folder: Path, num_gpus: int) -> None:
    """An update of two learners, on a GPU each or on processors, against one learner on a processor."""
    model_dir = save_policy(folder / "policy", 0)
    start_closed_cluster(include_dashboard=False, logging_level=logging.ERROR)
    try:
        expected, _ = _updated(learning_experiment(model_dir, num_learners=0, num_gpus=0))
        found, seconds = _updated(
            learning_experiment(model_dir, num_learners=2, num_gpus=1 if num_gpus > 1 else 0)
        )
    finally:
        ray.shutdown()
    for name in _COMPARED:
        difference = abs(found[name] - expected[name])
        require(
            difference <= 1e-3 * abs(expected[name]) + 1e-5,
            f"{name} is {found[name]:.6g} with two learners and {expected[name]:.6g} with one",
        )
    report.passed("FSDP2", grad_norm=found["grad_norm"], update_s=seconds)


def learning_experiment(model_dir: Path, num_learners: int, num_gpus: int) -> ExperimentConfig:
    """With a teacher; learners on ``num_gpus`` each."""
    learner: dict[str, Any] = {"num_learners": num_learners, "num_gpus_per_learner": num_gpus}
    serving: dict[str, Any] = {} if num_gpus == 0 else {"num_gpus_per_replica": 1, "weight_transfer": "nccl"}
    # Learners are compared in float32: rounding would hide what sharding does.
    return make_experiment(
        model_dir,
        0.0,
        learner=learner | {"lr": 1e-3},
        serving=serving,
        hindsight={"mode": "immediate_feedback"},
    )


def _updated(experiment: ExperimentConfig) -> tuple[dict[str, float], float]:
    """The metrics of one update, and its seconds."""
    model_dir = experiment.model.path
    group = SERLLearnerGroup(config=SERLConfig.from_experiment(experiment, model_dir, model_dir))
    try:
        rows, _ = build_rows(_groups(model_dir), experiment, PromptEncoder.load(model_dir), 0)
        started = time.monotonic()
        handle = group.start_update(rows, 0)
        while (result := group.poll_update(handle, timeout_s=0.5)) is None:
            require(time.monotonic() - started < _TIMEOUT_S, "the update did not end")
        return result.metrics, time.monotonic() - started
    finally:
        group.shutdown()


def _groups(model_dir: str) -> list[TrajectoryGroup]:
    """Two groups of four made-up trajectories, half of which succeed."""
    encoder = PromptEncoder.load(model_dir)
    groups = []
    for number in range(2):
        task = Task(f"task {number}", "any")
        trajectories = [
            Trajectory(
                trajectory_id=f"{number}-{rollout}",
                group_id=f"{number}",
                rollout_index=rollout,
                task=task,
                steps=[_step(encoder, f"shelf {number} {index}", rollout) for index in range(2)],
                reward=float(rollout % 2),
                success=bool(rollout % 2),
                end_reason="done",
            )
            for rollout in range(4)
        ]
        groups.append(TrajectoryGroup(f"{number}", task, trajectories))
    return groups


def _step(encoder: PromptEncoder, seen: str, rollout: int) -> Step:
    messages = ({"role": "user", "content": f"You see {seen}."},)
    action = f"go to shelf {rollout}"
    response = f"<action>{action}</action>"
    response_ids = encoder.tokenizer.encode(response, add_special_tokens=False)
    return Step(
        prompt_ids=encoder.encode(messages),
        response_ids=response_ids,
        old_logprobs=[-1.0] * len(response_ids),
        action_mask=[0 < place < len(response_ids) - 1 for place in range(len(response_ids))],
        version_spans=(VersionSpan(0, len(response_ids), 0),),
        finish_reason="stop",
        messages=messages,
        response_text=response,
        anchor=seen,
        action=action,
        action_valid=True,
        feedback="You arrive.",
        next_observation=f"{seen}, nearer",
    )

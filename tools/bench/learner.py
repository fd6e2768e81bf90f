"""Updates on played trajectories: GRPO's against a bare forward and backward pass, SERL's against GRPO's.

SERL's update is measured twice: as it is after a wait for the batch, in which the teacher has scored all
groups but the last (`serl.learner.early_scores`), and as it is without any wait, the whole teacher in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serl.algorithm_config import SERLConfig
from serl.batch.packing import plan_update
from serl.batch.rows import build_rows
from serl.config import ExperimentConfig
from serl.learner.learner_group import SERLLearnerGroup
from serl.rollout.prompt import PromptEncoder
from serl.types import TrainingRow, TrajectoryGroup
from tools.bench.arguments import BenchmarkInputError, experiment_of, model_folder
from tools.bench.cluster import local_cluster
from tools.bench.figures import Figures
from tools.bench.play import player_on_deployment

BARE_GOAL = 0.9
SERL_GOAL = 1.2

_IGNORED = -100


@dataclass(slots=True)
class _Updates:
    """One value for each update: the learner's seconds, those with making samples, and its metrics."""

    seconds: list[float] = field(default_factory=list)
    seconds_with_samples: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def all_of(self, metric: str) -> list[float]:
        return [metrics[metric] for metrics in self.metrics]


def run(options: argparse.Namespace, figures: Figures) -> None:
    serl = _in_this_process(experiment_of(options, options.model), {})
    grpo = _in_this_process(serl, {"enabled": False})
    model_dir = model_folder(serl)
    with local_cluster() as run_dir:
        groups = _played(serl, model_dir, run_dir)
        bare = _BarePasses(serl, model_dir, groups)
        experiments = {"serl": serl, "serl without a wait": serl, "grpo": grpo}
        learners = {name: _learner(experiment, model_dir) for name, experiment in experiments.items()}
        updates = {name: _Updates() for name in learners}
        # The first turn is not measured: memory is asked for, libraries warm up.
        for weights_seq_no in range(1 + options.repetitions):
            bare.run(measured=weights_seq_no > 0)
            learners["serl"].score_early(groups[:-1], weights_seq_no)
            for name, learner in learners.items():
                _update(learner, groups, weights_seq_no, updates[name] if weights_seq_no else None)
    figures.note(
        f"{serl.model.path}: {len(groups)} groups of {serl.training.group_size}, {bare.num_rows} rows with "
        f"an advantage, {bare.num_tokens} tokens in {bare.num_micro_batches} micro-batches of up to "
        f"{serl.learner.micro_batch_tokens}; {options.repetitions} updates"
    )
    _report(bare, updates["grpo"], updates["serl"], updates["serl without a wait"], figures)


def _in_this_process(experiment: ExperimentConfig, hindsight: dict[str, Any]) -> ExperimentConfig:
    """``experiment`` with its learner here, and with ``hindsight`` changed."""
    return experiment.model_copy(
        update={
            "learner": experiment.learner.model_copy(update={"num_learners": 0}),
            "hindsight": experiment.hindsight.model_copy(update=hindsight),
        }
    )


def _played(experiment: ExperimentConfig, model_dir: Path, run_dir: Path) -> list[TrajectoryGroup]:
    """One batch of groups, as the policy plays them; the deployment has ended when this returns."""
    with player_on_deployment(experiment, model_dir, run_dir) as (player, _):
        return player.play_groups(experiment.training.groups_per_batch)


def _learner(experiment: ExperimentConfig, model_dir: Path) -> SERLLearnerGroup:
    return SERLLearnerGroup(config=SERLConfig.from_experiment(experiment, str(model_dir), str(model_dir)))


def _update(
    learner: SERLLearnerGroup, groups: list[TrajectoryGroup], weights_seq_no: int, updates: _Updates | None
) -> None:
    started = time.perf_counter()
    result = learner.poll_update(learner.start_update(groups, weights_seq_no), timeout_s=0.0)
    seconds = time.perf_counter() - started
    assert result is not None, "a learner in this process has finished when start_update returns"
    if updates is not None:
        updates.seconds.append(result.metrics["seconds_update"])
        updates.seconds_with_samples.append(seconds)
        updates.metrics.append(result.metrics)


class _BarePasses:
    """transformers alone: forward and backward over the micro-batches of GRPO's update, padded rows.

    Nothing else is in the measured seconds, neither making tensors nor an optimizer.
    """

    def __init__(self, experiment: ExperimentConfig, model_dir: Path, groups: list[TrajectoryGroup]) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = experiment.model
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation=model.attention, local_files_only=True
        )
        self._model.train()
        self._threads = experiment.learner.num_threads
        batches = _micro_batches(experiment, model_dir, groups)
        self.num_micro_batches = len(batches)
        self.num_rows = sum(len(batch) for batch in batches)
        self.num_tokens = sum(sample.num_tokens for batch in batches for sample in batch)
        if not self.num_tokens:
            raise BenchmarkInputError("no row of the played groups has an advantage")
        self._tensors = [_padded(batch) for batch in batches]
        self.seconds: list[float] = []

    def run(self, measured: bool) -> None:
        torch.set_num_threads(self._threads)
        started = time.perf_counter()
        for ids, labels in self._tensors:
            self._model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        if measured:
            self.seconds.append(time.perf_counter() - started)
        self._model.zero_grad()


def _micro_batches(
    experiment: ExperimentConfig, model_dir: Path, groups: list[TrajectoryGroup]
) -> list[list[TrainingRow]]:
    """The rows that each forward pass of an update holds."""
    samples, _ = build_rows(groups, experiment, PromptEncoder.load(str(model_dir)), 0)
    settings = experiment.learner
    (plan,) = plan_update(
        samples,
        num_learners=1,
        num_minibatches=settings.num_minibatches,
        num_epochs=settings.num_epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=(experiment.seed, 0),
    )
    return [
        [plan.samples[row] for row in rows]
        for minibatch in plan.minibatches
        for rows in minibatch.micro_batches
        if rows
    ]


def _padded(samples: Sequence[TrainingRow]) -> tuple[Tensor, Tensor]:
    """Ids and labels [R, longest], filled up on the right; only responses have labels."""
    shape = len(samples), max(sample.num_tokens for sample in samples)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
    for row, sample in enumerate(samples):
        response = torch.tensor(sample.response_ids)
        ids[row, : sample.num_tokens] = torch.tensor(sample.prompt_ids + sample.response_ids)
        labels[row, len(sample.prompt_ids) : sample.num_tokens] = response
    return ids, labels


def _report(
    bare: _BarePasses, grpo: _Updates, serl: _Updates, serl_without_wait: _Updates, figures: Figures
) -> None:
    def rates(seconds: Sequence[float]) -> list[float]:
        return [bare.num_tokens / one for one in seconds]

    figures.add("bare forward and backward", rates(bare.seconds), "tokens/s")
    figures.add("GRPO update", rates(grpo.seconds), "tokens/s")
    figures.add("SERL update", rates(serl.seconds), "tokens/s")
    figures.add("SERL update without a wait", rates(serl_without_wait.seconds), "tokens/s")
    figures.add("GRPO, from groups to new weights", grpo.seconds_with_samples, "s")
    figures.add("SERL, from groups to new weights", serl.seconds_with_samples, "s")
    figures.add("SERL, teacher before the update", serl.all_of("seconds_early_teacher"), "s")
    for part in ("samples", "teacher", "forward_backward", "optimizer"):
        figures.add(f"SERL, of it {part.replace('_', ' and ')}", serl.all_of(f"seconds_{part}"), "s")
    figures.add_ratio("GRPO update / bare, tokens/s", bare.seconds, grpo.seconds, at_least=BARE_GOAL)
    figures.add_ratio("SERL update / GRPO update, seconds", serl.seconds, grpo.seconds, at_most=SERL_GOAL)
    figures.add_ratio("SERL update without a wait / GRPO update", serl_without_wait.seconds, grpo.seconds)
    figures.add_ratio(
        "SERL / GRPO from groups to new weights", serl.seconds_with_samples, grpo.seconds_with_samples
    )
    figures.add_ratio(
        "teacher / SERL update without a wait",
        serl_without_wait.all_of("seconds_teacher"),
        serl_without_wait.seconds,
    )

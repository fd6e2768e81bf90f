"""Runs in the peers' environment: TRL's GRPOTrainer on an experiment's games; writes a line an iteration.

A row is one step of an episode, as in SERL, which TRL has no form for: its groups are of equal size, so blank
rows fill them up. Of SERL it uses environments, prompts and actions, and its way to load vLLM on processors.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from envs.base import Task
from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.models.resolve import resolve_model
from serl.rollout.prompt import PromptEncoder
from serl.run.surroundings import write_any_character
from serl.serving.transfer.targets import WholeModel
from serl.types import RolloutRequest
from tools.bench.peers.iterations import Iteration, append_iteration, is_measured, program_parser
from tools.bench.peers.lockstep import LockstepPlayer
from tools.bench.peers.trl_padding import without_padding
from tools.bench.peers.trl_rows import TRLRows, cut_at


class TrimmedTrainer(GRPOTrainer):
    """TRL's, whose forward passes leave out what is padding."""

    def _get_per_token_logps_and_entropies(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        original = super()._get_per_token_logps_and_entropies

        def compute(ids: torch.Tensor, mask: torch.Tensor, num_completion: int) -> Any:
            return original(model, ids, mask, num_completion, **options)[:2]

        rows_at_once = batch_size or len(input_ids)
        return *without_padding(compute, input_ids, attention_mask, logits_to_keep, rows_at_once), None


class Rollouts:
    """The trainer's ``rollout_func``: every prompt is the id of a task, as often as its group has rows."""

    def __init__(self, experiment: ExperimentConfig, encoder: PromptEncoder, stop_ids: list[int]) -> None:
        self._experiment = experiment
        provider = make_provider(experiment.env.name, experiment.env.args)
        self.tasks = {task.task_id: task for task in provider.task_set(experiment.env.train_split).tasks}
        self._player = LockstepPlayer(experiment, provider, encoder)
        self._stop_ids = stop_ids
        self.rows_of_group = experiment.training.group_size * experiment.env.max_steps
        self.env_steps = 0
        self.success = 0.0

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        groups = [self.tasks[task_id] for task_id in prompts[:: self.rows_of_group]]
        size = self._experiment.training.group_size
        requests = [one for number, task in enumerate(groups) for one in _requests(task, number, size)]
        trajectories = self._player.play(requests, partial(self._respond, trainer))
        self.env_steps = sum(len(trajectory.steps) for trajectory in trajectories)
        self.success = sum(trajectory.success for trajectory in trajectories) / len(trajectories)
        rows = TRLRows()
        penalty = self._experiment.env.invalid_action_penalty
        blank_id = trainer.processing_class.pad_token_id
        for first in range(0, len(trajectories), size):
            group = trajectories[first : first + size]
            rows.add_group(group, self.rows_of_group, penalty, blank_id)
        return rows.output(has_logprobs=trainer.use_vllm)

    def _respond(self, trainer: Any, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
        # What GRPOTrainer itself calls; there is no public way to generate from ids with its settings.
        completions, logprobs = trainer._generate_single_turn(prompts, None, {}, 1)
        cut = [cut_at(self._stop_ids, list(ids)) for ids in completions]
        known = logprobs or [[0.0] * len(ids) for ids in cut]
        return [(ids, list(own[: len(ids)])) for ids, own in zip(cut, known, strict=True)]


def _requests(task: Task, number: int, group_size: int) -> list[RolloutRequest]:
    return [RolloutRequest(task, str(number), index, seed=0) for index in range(group_size)]


def row_reward(row_reward: list[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: what `Rollouts` found."""
    return row_reward


class _Clock(TrainerCallback):
    """Writes a line when the last optimizer step of a batch is done, until enough is measured."""

    def __init__(self, rollouts: Rollouts, num_minibatches: int, measured_s: float, output: Path) -> None:
        self._rollouts = rollouts
        self._num_minibatches = num_minibatches
        self._measured_s = measured_s
        self._output = output
        self._started = 0.0
        self._ended_s: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._num_minibatches:
            return
        self._ended_s.append(time.perf_counter() - self._started)
        iteration = Iteration(
            seconds=self._ended_s[-1],
            processor_seconds=time.process_time(),
            env_steps=self._rollouts.env_steps,
            success=self._rollouts.success,
        )
        append_iteration(self._output, iteration)
        control.should_training_stop |= is_measured(self._ended_s, self._measured_s)


def _settings(
    experiment: ExperimentConfig, rows_of_group: int, stop_ids: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    """GRPOConfig's: those of the experiment, and what makes of them the same minibatches.

    Raises ValueError if a batch does not divide into them.
    """
    training, learner = experiment.training, experiment.learner
    rows = training.groups_per_batch * rows_of_group
    rows_of_step = options.rows_at_once * learner.num_minibatches
    if rows % rows_of_step:
        raise ValueError(f"{rows} rows of a batch do not divide into {rows_of_step}")
    settings = {
        "num_generations": rows_of_group,
        "generation_batch_size": rows,
        "per_device_train_batch_size": options.rows_at_once,
        "gradient_accumulation_steps": rows // rows_of_step,
        "max_steps": training.num_iterations * learner.num_minibatches,
        "max_completion_length": experiment.rollout.max_response_length,
        "temperature": experiment.rollout.temperature,
        "learning_rate": learner.lr,
        "lr_scheduler_type": learner.lr_schedule,
        "warmup_steps": learner.lr_warmup_updates * learner.num_minibatches,
        "weight_decay": learner.weight_decay,
        "max_grad_norm": learner.grad_clip,
        "seed": experiment.seed,
        "generation_kwargs": {"stop_token_ids" if options.vllm else "eos_token_id": stop_ids},
        # As SERL's learner computes.
        "bf16": experiment.model.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if options.trimmed:
        settings["gradient_checkpointing"] = False
    if options.vllm:
        settings |= {"use_vllm": True, "vllm_mode": "colocate"}
        settings["vllm_max_model_length"] = experiment.model.max_model_len
    return settings


def reload_whole_models(generation: Any) -> None:
    """For vLLM on processors, which packs weights as it loads them, where TRL writes into them one by one."""
    engine, sync_weights = generation.llm.llm_engine, generation.sync_weights
    model = engine.model_executor.driver_worker.model_runner.model
    target = WholeModel(model, engine.model_config, torch.device("cpu"))

    def reload() -> None:
        target.begin()
        sync_weights()
        target.finish()

    generation.sync_weights = reload


def _stop_ids(experiment: ExperimentConfig, encoder: PromptEncoder) -> list[int]:
    stop_ids = [encoder.ids(stop) for stop in experiment.rollout.stop]
    if any(len(ids) != 1 for ids in stop_ids):
        raise ValueError(f"rollout.stop {experiment.rollout.stop}: each must be one token of the policy's")
    return [encoder.tokenizer.eos_token_id, *(ids[0] for ids in stop_ids)]


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--trimmed", action="store_true", help="without padding and without checkpointing")
    parser.add_argument("--vllm", action="store_true", help="generates with vLLM")
    parser.add_argument(
        "--rows-at-once", type=int, default=GRPOConfig.per_device_train_batch_size, help="of a micro-batch"
    )
    options = parser.parse_args()
    if options.vllm:
        # TRL writes its weights into an engine of the same process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    experiment = load_experiment(options.experiment, options.overrides)
    model_dir = resolve_model(experiment.model.path)
    encoder = PromptEncoder.load(str(model_dir))
    stop_ids = _stop_ids(experiment, encoder)
    rollouts = Rollouts(experiment, encoder, stop_ids)
    settings = _settings(experiment, rollouts.rows_of_group, stop_ids, options)
    kind = TrimmedTrainer if options.trimmed else GRPOTrainer
    with tempfile.TemporaryDirectory(prefix="serl-bench-") as folder:
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True),
            processing_class=encoder.tokenizer,
            reward_funcs=row_reward,
            train_dataset=Dataset.from_dict({"prompt": list(rollouts.tasks)}),
            args=GRPOConfig(output_dir=folder, **settings),
            rollout_func=rollouts,
            callbacks=[_Clock(rollouts, experiment.learner.num_minibatches, options.seconds, options.output)],
        )
        if options.vllm and not torch.cuda.is_available():
            reload_whole_models(trainer.vllm_generation)
        trainer.train()
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

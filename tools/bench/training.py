"""Updates against bare forward and backward passes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serl.algorithm import SERLConfig
from serl.batch.assemble import build_rows
from serl.batch.packing import plan_update
from serl.batch.rows import TrainingRows
from serl.config import ExperimentConfig
from serl.learner.learner_group import SERLLearnerGroup, UpdateResult
from serl.private.rllib import local_learner
from serl.rollout.prompt import PromptEncoder
from serl.types import TrainingRow, TrajectoryGroup
from tools.bench.figures import Figures
from tools.bench.learner_profile import Profile, peak, profiled, report
from tools.bench.play import local_cluster, player_on_deployment, with_settings
from tools.bench.synchronisations import HostSynchronisations

_IGNORED = -100
_ROW_BY_ROW = "GRPO row by row"
# Reading a profile takes longer than the update.
_PROFILED_GROUPS = 2


def learner(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    serl_arm = with_settings(experiment, learner={"num_learners": 0})
    grpo_arm = with_settings(serl_arm, hindsight={"enabled": False})
    arms = {"SERL": serl_arm, "GRPO": grpo_arm, _ROW_BY_ROW: grpo_arm}
    encoder = PromptEncoder.load(str(model_dir))
    with local_cluster() as run_dir:
        with player_on_deployment(experiment, model_dir, run_dir) as (player, _):
            groups = player.play_groups(experiment.training.groups_per_batch)
        bare = _BarePasses(grpo_arm, model_dir, encoder, groups)
        learners = {name: _learner_of(arm, model_dir) for name, arm in arms.items()}
        local_learner(learners[_ROW_BY_ROW]).policy.lay_out("padded")
        num_computed: dict[str, list[float]] = {name: [] for name in arms}
        updates: list[dict[str, float]] = []
        # The first turn is not measured: memory is asked for, libraries warm up.
        for weights_seq_no in range(1 + options.repetitions):
            own = {"bare forward and backward": bare.run()}
            for name, arm in arms.items():
                started = time.perf_counter()
                rows, _ = build_rows(groups, arm, encoder, weights_seq_no)
                result = _update(learners[name], rows, weights_seq_no)
                own[f"{name} from groups to new weights"] = time.perf_counter() - started
                own[f"{name} update"] = result.metrics["seconds_update"]
                num_computed[name].append(result.metrics["num_computed_tokens"])
                for part in ("teacher", "forward_backward", "optimizer"):
                    own[f"{name}, of it {part}"] = result.metrics[f"seconds_{part}"]
            updates.append(own)
        with HostSynchronisations() as waits:
            rows, _ = build_rows(groups, grpo_arm, encoder, len(updates))
            _update(learners["GRPO"], rows, len(updates))
        num_passes = len(_micro_batches(grpo_arm, encoder, groups, as_trees=True))
        rows, _ = build_rows(groups[:_PROFILED_GROUPS], grpo_arm, encoder, len(updates))
        profiles, peaks = _profiles(learners["GRPO"], rows, len(updates), options)
    figures.note(
        f"{experiment.model.path}: {len(groups)} groups of {experiment.training.group_size}, "
        f"{bare.num_rows} rows with an advantage, {bare.num_tokens} tokens in {len(bare.tensors)} "
        f"micro-batches of up to {experiment.learner.micro_batch_tokens}; {options.repetitions} updates"
    )
    figures.add("tokens of a row", [bare.num_tokens / bare.num_rows], "")
    figures.add("padding, of all positions", [1.0 - bare.num_tokens / bare.num_positions], "")
    figures.add("host synchronisations of a micro-batch", [waits.number / num_passes], "")
    figures.add_all(updates[1:], "s")
    for name in ("GRPO", _ROW_BY_ROW):
        figures.add(f"{name} tokens computed", num_computed[name][1:], "")
    figures.add_ratio("GRPO tokens computed", f"{_ROW_BY_ROW} tokens computed", at_most=0.8)
    figures.add_ratio("GRPO update", f"{_ROW_BY_ROW} update", at_most=0.9)
    # Both compute the same tokens.
    figures.add_ratio("bare forward and backward", f"{_ROW_BY_ROW} update", at_least=0.9)
    figures.add_ratio("SERL update", "GRPO update", at_most=1.2)
    figures.add_ratio("SERL, of it teacher", "GRPO update", at_most=0.2)
    figures.add_ratio("SERL from groups to new weights", "GRPO from groups to new weights")
    if options.profile:
        report(profiles, peaks, figures)


def _update(learner: SERLLearnerGroup, rows: TrainingRows, weights_seq_no: int) -> UpdateResult:
    result = learner.poll_update(learner.start_update(rows, weights_seq_no), timeout_s=0.0)
    assert result is not None, "a local learner has finished when start_update returns"
    return result


def _profiles(
    learner: SERLLearnerGroup, rows: TrainingRows, weights_seq_no: int, options: argparse.Namespace
) -> tuple[list[Profile], list[float]]:
    """Of as many updates as repetitions, with ``options.profile``, each with what the machine can do."""
    vocabulary = local_learner(learner).policy.model.config.vocab_size
    profiles: list[Profile] = []
    peaks: list[float] = []
    for _ in range(options.repetitions if options.profile else 0):
        peaks.append(peak())
        profiles.append(profiled(lambda: _update(learner, rows, weights_seq_no), vocabulary))
    return profiles, peaks


def _learner_of(experiment: ExperimentConfig, model_dir: Path) -> SERLLearnerGroup:
    return SERLLearnerGroup(config=SERLConfig.from_experiment(experiment, str(model_dir), str(model_dir)))


class _BarePasses:
    """transformers alone: forward and backward over the micro-batches of GRPO's update, padded rows.

    Nothing else is in the measured seconds, neither making tensors nor an optimizer.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        model_dir: Path,
        encoder: PromptEncoder,
        groups: list[TrajectoryGroup],
    ) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        attention = experiment.model.attention
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation=attention, local_files_only=True
        )
        self._model.train()
        self._threads = experiment.learner.num_threads
        batches = _micro_batches(experiment, encoder, groups, as_trees=False)
        self.num_rows = sum(map(len, batches))
        self.num_tokens = sum(_num_tokens(row) for batch in batches for row in batch)
        if not self.num_rows:
            raise RuntimeError("no row of the played groups has an advantage")
        self.tensors = [_padded(batch) for batch in batches]
        self.num_positions = sum(ids.numel() for ids, _ in self.tensors)

    def run(self) -> float:
        """Seconds."""
        torch.set_num_threads(self._threads)
        started = time.perf_counter()
        for ids, labels in self.tensors:
            self._model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        seconds = time.perf_counter() - started
        self._model.zero_grad()
        return seconds


def _micro_batches(
    experiment: ExperimentConfig, encoder: PromptEncoder, groups: list[TrajectoryGroup], as_trees: bool
) -> list[list[TrainingRow]]:
    """The rows that each forward pass of an update holds."""
    rows, _ = build_rows(groups, experiment, encoder, 0)
    settings = experiment.learner
    (plan,) = plan_update(
        rows,
        num_learners=1,
        num_minibatches=settings.num_minibatches,
        num_epochs=settings.num_epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=(experiment.seed, 0),
        as_trees=as_trees,
    )
    batches = [batch for minibatch in plan.minibatches for batch in minibatch.micro_batches if batch]
    return [[plan.rows.row(row) for row in batch] for batch in batches]


def _num_tokens(row: TrainingRow) -> int:
    return len(row.prompt_ids) + len(row.response_ids)


def _padded(rows: Sequence[TrainingRow]) -> tuple[Tensor, Tensor]:
    """Ids and labels [R, longest], filled up on the right; only responses have labels."""
    shape = len(rows), max(map(_num_tokens, rows))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
    for index, row in enumerate(rows):
        ids[index, : _num_tokens(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        labels[index, len(row.prompt_ids) : _num_tokens(row)] = torch.tensor(row.response_ids)
    return ids, labels

"""A training run from start to end: iterations, evaluations, checkpoints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from serl.algorithm_state import CheckpointError, read_algorithm_state
from serl.config import ExperimentConfig
from serl.evaluation import EvaluationResult
from serl.iteration import TrainingInterrupted
from serl.learner.errors import LearnerError
from serl.models.merge import holds_adapters, write_merged
from serl.models.resolve import resolve_model
from serl.rollout.prompt import PromptEncoder
from serl.run.checkpoint import CHECKPOINTS, CheckpointWriter, list_checkpoints
from serl.run.checkpoint_copies import checkpoint_writer
from serl.run.cluster import running_algorithm
from serl.run.console import Console
from serl.run.credit import CreditMeter
from serl.run.evaluations import append_evaluation, read_evaluations
from serl.run.ray_metrics import exported_metrics
from serl.run.records import TRAJECTORIES, TrajectoryWriter
from serl.run.restarts import RestartBudget
from serl.run.resume import checkpoint_to_resume
from serl.run.run_dir import RunDir
from serl.run.stop import StopRequest

if TYPE_CHECKING:
    from serl.algorithm import SERL

logger = logging.getLogger(__name__)


def train(
    experiment: ExperimentConfig,
    run_dir: RunDir,
    console: Console,
    stop: StopRequest,
    resume: Path | None = None,
    address: str | None = None,
) -> bool:
    """Trains to ``training.num_iterations``; ``resume`` is the checkpoint to resume from.

    Remote learners that fail are replaced in place and resume from the newest checkpoint. Returns False if
    ``stop`` was set before the end; there is a checkpoint then, of the last finished update unless learners
    failed. Raises LearnerError when they fail more often than ``training.max_restarts`` allows, or are not
    replaced because of ``stop``, with no checkpoint to resume from; CheckpointError if all are damaged.
    """
    model_dir = resolve_model(experiment.model.path)
    restarts = RestartBudget(experiment.training.max_restarts)
    credit = CreditMeter.of(experiment)
    writer = checkpoint_writer(run_dir.path, experiment.checkpoint)
    with (
        running_algorithm(experiment, model_dir, run_dir, console, stop, address) as algorithm,
        exported_metrics(run_dir),
        writer as checkpoints,
    ):
        begin = partial(algorithm.load_checkpoint, str(resume)) if resume is not None else None
        while True:
            try:
                if begin is not None:
                    begin()
                run_dir.metrics.start(algorithm.weights_seq_no, console.note)
                records = TrajectoryWriter(
                    run_dir.path,
                    PromptEncoder.load(str(model_dir)).tokenizer,
                    max_bytes=int(experiment.logging.max_trajectories_mib * 2**20),
                )
                stop.nothing_to_save = False
                return _Run(experiment, run_dir, console, algorithm, checkpoints, records, credit).iterate()
            except LearnerError as error:
                if experiment.learner.num_learners == 0:
                    raise
                checkpoints.abandon()
                if stop.is_set():
                    newest = list_checkpoints(run_dir.path / CHECKPOINTS)[-1:]
                    if not newest:
                        raise
                    console.note(f"{error}; nobody is left to save what came after {newest[0].name}")
                    return False
                logger.exception("replacing the learners")
                which = restarts.spend(error, algorithm.weights_seq_no)
                checkpoint = checkpoint_to_resume(run_dir.path, start=True, say=console.note)
                resumed = "the beginning" if checkpoint is None else checkpoint.name
                console.note(f"{error}; new learners resume from {resumed} ({which})")
                begin = partial(algorithm.restart_learners, checkpoint)
                run_dir.metrics.close()


def evaluate_checkpoint(
    experiment: ExperimentConfig,
    checkpoint: Path,
    run_dir: RunDir,
    console: Console,
    stop: StopRequest,
    address: str | None = None,
) -> EvaluationResult:
    """Plays the evaluation with the policy of ``checkpoint`` and trains nothing."""
    trained_at = read_algorithm_state(checkpoint)["weights_seq_no"]
    with (
        whole_policy(experiment, checkpoint / "policy", run_dir) as (experiment, policy),
        running_algorithm(experiment, policy, run_dir, console, stop, address) as algorithm,
    ):
        # Served as the start of a run of its own, the policy counts its updates anew.
        result = replace(algorithm.run_evaluation(), weights_seq_no=trained_at)
    console.evaluation(f"checkpoint of iteration {trained_at}", result)
    append_evaluation(run_dir.path, result)
    return result


@contextmanager
def whole_policy(
    experiment: ExperimentConfig, policy: Path, run_dir: RunDir
) -> Iterator[tuple[ExperimentConfig, Path]]:
    """``policy``, or, where it holds adapters, the folder of a policy that they are merged into, for a while.

    With the experiment that such a policy is served by.
    """
    if not holds_adapters(policy):
        yield experiment, policy
        return
    merged = run_dir.path / "merged_policy"
    try:
        write_merged(resolve_model(experiment.model.path), policy, merged)
        model = experiment.model.model_copy(update={"lora": None})
        yield experiment.model_copy(update={"model": model}), merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)


class _Run:
    """One process's part of a run: iterations until the end or until it is asked to stop."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        run_dir: RunDir,
        console: Console,
        algorithm: SERL,
        checkpoints: CheckpointWriter,
        records: TrajectoryWriter,
        credit: CreditMeter | None,
    ) -> None:
        self.experiment = experiment
        self.run_dir = run_dir
        self.console = console
        self.algorithm = algorithm
        self.checkpoints = checkpoints
        self.records = records
        self.credit = credit
        self.saved_iteration = self.iteration if self.iteration else -1

    @property
    def iteration(self) -> int:
        return self.algorithm.weights_seq_no

    @property
    def finished(self) -> bool:
        return self.iteration >= self.experiment.training.num_iterations

    def iterate(self) -> bool:
        try:
            while True:
                self.save_if_due()
                if self.evaluation_is_due():
                    self.evaluate()
                if self.finished:
                    break
                self.train_once()
        except TrainingInterrupted as interruption:
            self.console.note(f"{interruption}; saving a checkpoint")
            self.save()
            self.checkpoints.wait()
            return False
        except (LearnerError, CheckpointError):
            raise  # there is nobody to save it, or no place
        except Exception as error:
            if self.iteration > max(self.saved_iteration, 0) and not self.algorithm.is_updating:
                self.console.note(f"{type(error).__name__}; saving a checkpoint")
                self.save()
                self.checkpoints.wait()
            raise
        self.checkpoints.wait()
        self.console.summary(read_evaluations(self.run_dir.path))
        return True

    def evaluation_is_due(self) -> bool:
        """Whether this iteration is to be evaluated and was not, also before the run was resumed from it."""
        settings, iteration = self.experiment.evaluation, self.iteration
        if self.finished:
            due = settings.at_end
        else:
            due = _is_due(settings.interval, iteration) if iteration else settings.at_start
        return due and iteration not in {
            found.weights_seq_no for found in read_evaluations(self.run_dir.path)
        }

    def save_if_due(self) -> None:
        """Before an evaluation, which may take long and lose nothing then."""
        if self.finished or (self.iteration and _is_due(self.experiment.checkpoint.interval, self.iteration)):
            self.save()

    def train_once(self) -> None:
        self.algorithm.train()
        metrics = self.algorithm.iteration_metrics
        self.run_dir.metrics.write(self.iteration, metrics | self.record() | self.checkpoints.take_metrics())
        self.console.iteration(self.iteration, self.experiment.training.num_iterations, metrics)
        self.console.replicas(
            metrics["serving/replicas"], metrics["serving/missing_replicas"], self.run_dir.logs
        )
        self.console.env_runners(metrics["pool/env_runners"], metrics["pool/missing_env_runners"])

    def record(self) -> dict[str, float]:
        """Writes the trajectories of this iteration that are to be looked at, and says if no more fit."""
        was_full = self.records.full
        recorded = self.algorithm.last_recorded, self.algorithm.last_teacher_records
        metrics = self.records.write(self.iteration, *recorded)
        if self.credit is not None:
            metrics |= self.credit.metrics(*recorded)
        if self.records.full and not was_full:
            limit = self.experiment.logging.max_trajectories_mib
            self.console.note(
                f"{TRAJECTORIES} is full (logging.max_trajectories_mib = {limit:g}): trajectories from "
                f"iteration {self.iteration} on are counted, not recorded"
            )
        return metrics

    def evaluate(self) -> None:
        result = self.algorithm.run_evaluation()
        if self.finished:
            # A run that has its last evaluation has its last checkpoint.
            self.checkpoints.wait()
        append_evaluation(self.run_dir.path, result)
        self.run_dir.metrics.write(self.iteration, result.metrics())
        self.console.evaluation(f"iteration {self.iteration}", result)

    def save(self) -> None:
        """Saves what this iteration has not saved yet, beside what comes next.

        Raises CheckpointError if it cannot be written, or the one before could not.
        """
        if self.iteration != self.saved_iteration:
            self.checkpoints.start(self.iteration, self.algorithm.start_checkpoint)
            self.saved_iteration = self.iteration


def _is_due(interval: int, iteration: int) -> bool:
    return interval > 0 and iteration % interval == 0

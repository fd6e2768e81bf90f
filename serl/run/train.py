"""A training run from start to end: cluster, algorithm, iterations, evaluations, checkpoints."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
from ray import serve

from serl.algorithm import SERL, SERLConfig, TrainingInterrupted
from serl.algorithm_state import CheckpointError, read_algorithm_state
from serl.config import ExperimentConfig
from serl.evaluation import EvaluationResult
from serl.learner.learner_group import LearnerError
from serl.models.resolve import resolve_model
from serl.rollout.prompt import PromptEncoder
from serl.run.checkpoint import save_checkpoint
from serl.run.console import Console
from serl.run.driver_log import log_to_file, output_to_file
from serl.run.evaluations import append_evaluation, read_evaluations
from serl.run.processes import kill_descendants
from serl.run.records import TRAJECTORIES, TrajectoryWriter
from serl.run.run_dir import RunDir
from serl.run.stop import StopRequest
from serl.run.surroundings import reach_local_hosts_directly

logger = logging.getLogger(__name__)

# Everything that is to be kept has been saved by then.
_SHUTDOWN_TIMEOUT_S = 30.0


@contextmanager
def running_algorithm(
    experiment: ExperimentConfig,
    model_dir: Path,
    run_dir: RunDir,
    console: Console,
    stop: StopRequest,
    address: str | None,
) -> Iterator[SERL]:
    """The algorithm with everything it needs running, on the Ray cluster at ``address`` or one of its own.

    At the end the algorithm is stopped, and so is a cluster of its own. If that hangs, all processes of the
    cluster are killed, and ``stop.shutdown_hangs`` says that this one should end without Ray's goodbyes.
    """
    driver_log = run_dir.logs / "driver.log"
    algorithm: SERL | None = None
    try:
        with output_to_file(driver_log):
            _start_ray(experiment, address, driver_log)
            built = SERLConfig.from_experiment(experiment, str(model_dir), str(run_dir.path)).build_algo()
        assert isinstance(built, SERL)
        algorithm = built
        algorithm.should_stop = stop.is_set
        algorithm.on_progress = console.progress
        yield algorithm
    finally:
        with output_to_file(driver_log):
            stop.shutdown_hangs = not _shut_down(algorithm, own_cluster=address is None)


def _shut_down(algorithm: SERL | None, own_cluster: bool) -> bool:
    """Whether it came to an end within ``_SHUTDOWN_TIMEOUT_S``; what it raised goes on then."""
    failures: list[BaseException] = []

    def stop_everything() -> None:
        try:
            if algorithm is not None:
                algorithm.stop()
            if own_cluster and ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=stop_everything, name="shutdown", daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_TIMEOUT_S)
    if thread.is_alive():
        logger.error("shutting down takes longer than %g s: killing what is left", _SHUTDOWN_TIMEOUT_S)
        kill_descendants(timeout_s=10.0)
        return False
    if failures:
        raise failures[0]
    return True


def _start_ray(experiment: ExperimentConfig, address: str | None, driver_log: Path) -> None:
    stop_handler = signal.getsignal(signal.SIGTERM)
    if address is None:
        # Without an address Ray would join a cluster that `ray start` has left running on this machine.
        context = ray.init(
            address="local",
            include_dashboard=experiment.cluster.dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
        )
    else:
        # Those of the cluster's workers that start elsewhere do not inherit this process's environment.
        excepted = reach_local_hosts_directly(address)
        runtime_env = {"env_vars": excepted} if excepted else None
        context = ray.init(address=address, log_to_driver=False, runtime_env=runtime_env)
    # Ray puts its own handler in the place of the one that saves a checkpoint.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop_handler)
    log_to_file(driver_log)
    logger.info("Ray %s, dashboard %s", ray.__version__, context.dashboard_url or "off")


def train(
    experiment: ExperimentConfig,
    run_dir: RunDir,
    console: Console,
    stop: StopRequest,
    resume: Path | None = None,
    address: str | None = None,
) -> bool:
    """Trains to ``training.num_iterations``; ``resume`` is the checkpoint to resume from.

    Returns False if ``stop`` was set before the end; a checkpoint has been written then.
    """
    model_dir = resolve_model(experiment.model.path)
    with running_algorithm(experiment, model_dir, run_dir, console, stop, address) as algorithm:
        if resume is not None:
            algorithm.load_checkpoint(str(resume))
        run_dir.metrics.start(algorithm.weights_seq_no)
        records = TrajectoryWriter(
            run_dir.path,
            PromptEncoder.load(str(model_dir)).tokenizer,
            max_bytes=int(experiment.logging.max_trajectories_mib * 2**20),
        )
        return _Run(experiment, run_dir, console, algorithm, records).iterate()


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
    with running_algorithm(experiment, checkpoint / "policy", run_dir, console, stop, address) as algorithm:
        # Served as the start of a run of its own, the policy counts its updates anew.
        result = replace(algorithm.run_evaluation(), weights_seq_no=trained_at)
    console.evaluation(f"checkpoint of iteration {trained_at}", result)
    append_evaluation(run_dir.path, result)
    return result


class _Run:
    """One process's part of a run: iterations until the end or until it is asked to stop."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        run_dir: RunDir,
        console: Console,
        algorithm: SERL,
        records: TrajectoryWriter,
    ) -> None:
        self.experiment = experiment
        self.run_dir = run_dir
        self.console = console
        self.algorithm = algorithm
        self.records = records
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
            return False
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
        self.run_dir.metrics.write(self.iteration, metrics | self.record())
        self.console.iteration(self.iteration, self.experiment.training.num_iterations, metrics)

    def record(self) -> dict[str, float]:
        """Writes the trajectories of this iteration that are to be looked at, and says if no more fit."""
        was_full = self.records.full
        metrics = self.records.write(
            self.iteration, self.algorithm.last_recorded, self.algorithm.last_teacher_records
        )
        if self.records.full and not was_full:
            limit = self.experiment.logging.max_trajectories_mib
            self.console.note(
                f"{TRAJECTORIES} is full (logging.max_trajectories_mib = {limit:g}): trajectories from "
                f"iteration {self.iteration} on are counted, not recorded"
            )
        return metrics

    def evaluate(self) -> None:
        result = self.algorithm.run_evaluation()
        append_evaluation(self.run_dir.path, result)
        self.run_dir.metrics.write(self.iteration, result.metrics())
        self.console.evaluation(f"iteration {self.iteration}", result)

    def save(self) -> None:
        """Saves what this iteration has not saved yet; raises CheckpointError if it cannot be written."""
        if self.iteration == self.saved_iteration:
            return
        checkpoints = self.run_dir.path / "checkpoints"
        keep = self.experiment.checkpoint.keep
        try:
            save_checkpoint(checkpoints, self.iteration, self.algorithm.save_checkpoint, keep)
        except (OSError, LearnerError) as error:
            logger.exception("the checkpoint of iteration %d", self.iteration)
            # A learner's error ends with its reason, after a traceback.
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"the checkpoint of iteration {self.iteration} cannot be written below {checkpoints}, "
                f"earlier ones are as they were: {reason}"
            ) from error
        self.saved_iteration = self.iteration


def _is_due(interval: int, iteration: int) -> bool:
    return interval > 0 and iteration % interval == 0

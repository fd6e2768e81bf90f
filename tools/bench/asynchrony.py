"""Env steps a second of whole training runs: ``max_staleness`` 1 against 0."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from serl.algorithm import SERL
from serl.algorithm_config import SERLConfig
from serl.config import ExperimentConfig
from tools.bench.arguments import experiment_of, model_folder
from tools.bench.cluster import local_cluster
from tools.bench.figures import Figures

# Both runs then play the same policy, so that their episodes are equally long.
_LR_THAT_CHANGES_NOTHING = 1e-12
# Until every place is taken and everything has been called once.
_RAMP_UP_ITERATIONS = 2


@dataclass(frozen=True, slots=True)
class _Run:
    env_steps_per_s: float
    seconds_per_iteration: float
    share_waiting: float
    mean_staleness: float


def run(options: argparse.Namespace, figures: Figures) -> None:
    experiment = experiment_of(options, options.model)
    model_dir = model_folder(experiment)
    runs: dict[int, list[_Run]] = {0: [], 1: []}
    with local_cluster() as run_dir:
        for _ in range(options.repetitions):
            for max_staleness, own in runs.items():
                own.append(_train(_with(experiment, max_staleness), model_dir, run_dir, options.iterations))
    figures.note(
        f"{experiment.model.path}: batches of {experiment.training.groups_per_batch} groups of "
        f"{experiment.training.group_size}; {options.repetitions} runs each, of "
        f"{options.iterations} iterations after {_RAMP_UP_ITERATIONS} unmeasured ones"
    )
    for max_staleness, own in runs.items():
        name = f"max_staleness {max_staleness}"
        figures.add(name, [one.env_steps_per_s for one in own], "steps/s")
        figures.add(f"{name}: iteration", [one.seconds_per_iteration for one in own], "s")
        figures.add(f"{name}: waiting for a batch", [one.share_waiting for one in own], "of all")
        figures.add(f"{name}: versions behind", [one.mean_staleness for one in own], "versions")
    figures.add_ratio(
        "max_staleness 1 / 0, env steps/s",
        [one.env_steps_per_s for one in runs[1]],
        [one.env_steps_per_s for one in runs[0]],
    )


def _with(experiment: ExperimentConfig, max_staleness: int) -> ExperimentConfig:
    return experiment.model_copy(
        update={
            "training": experiment.training.model_copy(update={"max_staleness": max_staleness}),
            "learner": experiment.learner.model_copy(update={"lr": _LR_THAT_CHANGES_NOTHING}),
        }
    )


def _train(experiment: ExperimentConfig, model_dir: Path, run_dir: Path, num_iterations: int) -> _Run:
    """Every wait inside has the deadlines of the experiment."""
    algorithm = SERLConfig.from_experiment(experiment, str(model_dir), str(run_dir)).build_algo()
    assert isinstance(algorithm, SERL)
    try:
        for _ in range(_RAMP_UP_ITERATIONS):
            algorithm.train()
        iterations = []
        started = time.perf_counter()
        for _ in range(num_iterations):
            algorithm.train()
            iterations.append(algorithm.iteration_metrics)
        seconds = time.perf_counter() - started
    finally:
        algorithm.stop()
    return _Run(
        env_steps_per_s=sum(metrics["runners/env_steps"] for metrics in iterations) / seconds,
        seconds_per_iteration=seconds / num_iterations,
        share_waiting=sum(metrics["time/wait_for_batch_s"] for metrics in iterations) / seconds,
        mean_staleness=sum(metrics["staleness/mean"] for metrics in iterations) / num_iterations,
    )

"""Whole runs that sample while they learn (`training.max_staleness`), against one that takes turns."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from serl.algorithm import SERL, SERLConfig
from serl.batch.packing import LearnerPlan
from serl.config import ExperimentConfig
from serl.learner.learner import SERLLearner
from serl.learner.report import LearnerReport
from tools.bench.delays import delayed
from tools.bench.figures import Figures
from tools.bench.play import local_cluster, with_settings

# All runs then play the same policy, so that their episodes are equally long.
_LR_THAT_CHANGES_NOTHING = 1e-12
# Until every place is taken and everything has been called once.
_RAMP_UP_ITERATIONS = 2
_UNITS = {"env steps": "steps/s", "iteration": "s", "waiting for a batch": "of all", "staleness": "versions"}
_GOAL = 2.5


def asynchrony(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """With ``options.learner_s`` sampler and learner share no core."""
    played = delayed(experiment, options.env_s, options.sigma) if options.env_s else experiment
    stalenesses = [0, *(options.staleness or [1])]
    runs: dict[int, list[dict[str, float]]] = {max_staleness: [] for max_staleness in stalenesses}
    with local_cluster() as run_dir:
        for repetition in range(options.repetitions):
            for max_staleness in stalenesses if repetition % 2 == 0 else reversed(stalenesses):
                arm = with_settings(
                    played,
                    # Few episodes of few steps succeed: replacing groups without variance would not end.
                    training={"max_staleness": max_staleness, "filter_groups": False},
                    learner={"lr": _LR_THAT_CHANGES_NOTHING},
                )
                runs[max_staleness].append(_train(arm, model_dir, run_dir, options))
    figures.note(
        f"{experiment.model.path}: batches of {experiment.training.groups_per_batch} groups of "
        f"{experiment.training.group_size}; {options.repetitions} runs each, of "
        f"{options.iterations} iterations after {_RAMP_UP_ITERATIONS} unmeasured ones"
    )
    if options.env_s:
        figures.note(f"steps delayed by {options.env_s:g} s in the median episode, sigma {options.sigma:g}")
    if options.learner_s:
        figures.note(f"a learner that sleeps for {options.learner_s:g} s")
    for max_staleness, own in runs.items():
        for what, unit in _UNITS.items():
            figures.add(f"max_staleness {max_staleness}: {what}", (one[what] for one in own), unit)
    goal = {"at_least": _GOAL} if options.learner_s else {}
    for max_staleness in stalenesses[1:]:
        figures.add_ratio(f"max_staleness {max_staleness}: env steps", "max_staleness 0: env steps", **goal)


def _train(
    experiment: ExperimentConfig, model_dir: Path, run_dir: Path, options: argparse.Namespace
) -> dict[str, float]:
    """What a run did, in `_UNITS`. Every wait inside has the deadlines of the experiment."""
    kind = _with_sleeping_learner(options.learner_s) if options.learner_s else SERLConfig
    config = kind.from_experiment(experiment, str(model_dir), str(run_dir))
    algorithm = config.build_algo()
    assert isinstance(algorithm, SERL)
    algorithm.evaluation_interval = 0
    try:
        for _ in range(_RAMP_UP_ITERATIONS):
            algorithm.train()
        totals: Counter[str] = Counter()
        started = time.perf_counter()
        for _ in range(options.iterations):
            algorithm.train()
            totals.update(algorithm.iteration_metrics)  # pyright: ignore[reportArgumentType]
        seconds = time.perf_counter() - started
    finally:
        algorithm.stop()
    return {
        "env steps": totals["runners/env_steps"] / seconds,
        "iteration": seconds / options.iterations,
        "waiting for a batch": totals["time/wait_for_batch_s"] / seconds,
        "staleness": totals["staleness/mean"] / options.iterations,
    }


def _with_sleeping_learner(update_s: float) -> type[SERLConfig]:
    """A learner that takes no core: its updates sleep, and it publishes the weights that it began with."""

    class SleepingLearner(SERLLearner):
        def update_policy(self, plan: LearnerPlan, weights_seq_no: int) -> LearnerReport:
            report = LearnerReport()
            with report.timed("update"):
                time.sleep(update_s)
            return report

    class ConfigOfSleeping(SERLConfig):
        def get_default_learner_class(self) -> type:
            return SleepingLearner

    return ConfigOfSleeping

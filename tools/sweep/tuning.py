"""The sweep's trials in Ray Tune, with one line on the console for each that ends."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, RunConfig, TuneConfig

from serl.run.closed_cluster import start_closed_cluster
from serl.run.evaluations import read_evaluations
from tools.sweep.runs import finished_run
from tools.sweep.trial import SerlRun


class _Console(Callback):
    """Prints ``[3/25] arm seed 0: finished in 402 s, evaluation 0.35 → 0.56``."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if not result.get("done") or "outcome" not in result:
            return
        folder = Path(trial.config["run"]["folder"])
        line = f"{result['outcome']} in {result['seconds']:.0f} s"
        run_dir = finished_run(folder)
        if run_dir is not None:
            rates = [f"{evaluation.overall.rate:.2f}" for evaluation in read_evaluations(run_dir)]
            line += f", evaluation {' → '.join(rates)}" if rates else ""
        else:
            line += f": {result['message']} (log: {folder / result['log']})"
        self._print(trial, line)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._print(trial, f"failed: the trial's process died (Tune's record: {trial.local_path})")

    def _print(self, trial: Any, line: str) -> None:
        run = trial.config["run"]
        print(f"[{self._numbers[run['folder']]}/{len(self._numbers)}] {run['title']}: {line}", flush=True)


def run_trials(
    trials: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, int],
    resources: Mapping[str, float],
    options: argparse.Namespace,
) -> None:
    """Runs ``trials`` in their order, ``options.max_concurrent`` at a time; returns when all have ended.

    ``numbers`` says which run of the sweep a folder is. After Ctrl-C the running trials are told to stop and
    have left their checkpoint when this returns.
    """
    # Tune's own result files say nothing that the runs' folders do not.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if options.address:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        start_closed_cluster(include_dashboard=False, logging_level=logging.ERROR)
    try:
        tune.Tuner(
            tune.with_resources(SerlRun, dict(resources)),
            param_space={"run": tune.grid_search([dict(trial) for trial in trials])},
            tune_config=TuneConfig(max_concurrent_trials=options.max_concurrent, reuse_actors=False),
            run_config=RunConfig(
                name="tune",
                storage_path=str(options.out.absolute() / ".tune"),
                verbose=0,
                callbacks=[_Console(numbers)],
                checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        ray.shutdown()

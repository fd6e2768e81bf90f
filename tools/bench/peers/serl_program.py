"""Runs in SERL's own environment: trains an experiment; writes a line an iteration, as the peers do."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from serl.algorithm import SERL, SERLConfig
from serl.config.load import load_experiment
from serl.models.resolve import resolve_model
from serl.run.surroundings import write_any_character
from tools.bench.peers.iterations import Iteration, append_iteration, is_measured, program_parser
from tools.bench.play import local_cluster, processor_seconds


def main() -> int:
    options = program_parser(__doc__).parse_args()
    overrides = [*options.overrides, "cluster.dashboard=false", "logging.progress_bar=false"]
    experiment = load_experiment(options.experiment, overrides)
    model_dir = str(resolve_model(experiment.model.path))
    with local_cluster() as run_dir:
        algorithm = SERLConfig.from_experiment(experiment, model_dir, str(run_dir)).build_algo()
        assert isinstance(algorithm, SERL)
        algorithm.evaluation_interval = 0
        try:
            _train(algorithm, options.seconds, options.output)
        finally:
            algorithm.stop()
    return 0


def _train(algorithm: SERL, measured_s: float, output: Path) -> None:
    ended_s: list[float] = []
    started = time.perf_counter()
    while not is_measured(ended_s, measured_s):
        algorithm.train()
        ended_s.append(time.perf_counter() - started)
        iteration = Iteration(
            seconds=ended_s[-1],
            processor_seconds=sum(processor_seconds().values()),
            env_steps=int(algorithm.iteration_metrics["runners/env_steps"]),
            success=algorithm.iteration_metrics["rollout/success"],
        )
        append_iteration(output, iteration)


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

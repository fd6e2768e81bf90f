"""Runs a folder of experiments ("arms") with several seeds through Ray Tune.

    python -m tools.sweep experiments/ablation --seeds 0 1 2 3 4 --out sweeps/ablation [key.path=value …]

Started again it continues: a finished run is never run again, an unfinished one resumes from its checkpoint
or, without one, begins anew. Ctrl-C stops the running ones with a checkpoint. A run that fails is recorded
and the others go on. Exit codes: 0 every run is finished, 1 some are not, 2 bad input.

Why a trial is a process that runs `serl-run`, and not `SERL` as Tune's trainable: a run is more than its
algorithm (evaluation, run directory, checkpoints, resuming), and all of that is what is to be measured; a Ray
cluster, engines and shared memory of its own end with it, so nothing leaks from one trial into the next, and
the n-th run is as fast as the first. Tune adds order, placement by resources and concurrency. Each trial
asks for what one run needs, in one bundle: on a cluster (``--address``, ``--max-concurrent``) every run has
one node, and OUT must be a folder that all nodes share.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.run.preflight import examine_address, examine_inputs, examine_machine, needed_cpus, needed_gpus
from serl.run.surroundings import write_any_character
from tools.sweep.runs import (
    COMMANDS,
    PlannedRun,
    attempts,
    contradictions,
    find_arms,
    finished_run,
    plan_runs,
)

DONE, UNFINISHED, BAD_INPUT = 0, 1, 2
SERL_RUN = (sys.executable, "-m", "serl.run.cli")


def main(arguments: Sequence[str] | None = None, program: Sequence[str] = SERL_RUN) -> int:
    """Runs the command line; ``program`` is how serl-run is called. Returns the exit code."""
    options = _parse(arguments)
    try:
        runs = plan_runs(find_arms(options.experiments), options.seeds, options.out)
        experiments = _checked(runs, options.overrides, options.address)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    limit_s = 60.0 * options.limit_minutes
    waiting = []
    for number, run in enumerate(runs, start=1):
        left_s = limit_s - sum(attempt.seconds for attempt in attempts(run.folder))
        if finished_run(run.folder) is not None:
            print(f"[{number}/{len(runs)}] {run.title}: finished before")
        elif left_s <= 0.0:
            print(f"[{number}/{len(runs)}] {run.title}: over the limit before (see --limit-minutes)")
        else:
            waiting.append(run)
    if waiting:
        from tools.sweep.tuning import run_trials

        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / COMMANDS).open("a", encoding="utf-8") as file:
            file.write(shlex.join(["python", "-m", "tools.sweep", *(arguments or sys.argv[1:])]) + "\n")
        overrides = {run.folder: [*options.overrides, f"seed={run.seed}"] for run in waiting}
        trials = [_trial(run, program, overrides[run.folder], limit_s) for run in waiting]
        resources = {
            "cpu": max(needed_cpus(experiment) for experiment in experiments),
            "gpu": max(needed_gpus(experiment) for experiment in experiments),
        }
        run_trials(
            trials, {str(run.folder): number for number, run in enumerate(runs, 1)}, resources, options
        )
    unfinished = [run for run in runs if finished_run(run.folder) is None]
    print(f"{len(runs) - len(unfinished)} of {len(runs)} runs are finished, below {options.out}")
    return UNFINISHED if unfinished else DONE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiments", nargs="+", help="folders of arms, arms, and key.path=value overrides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of every arm (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="the sweep's folder")
    parser.add_argument(
        "--limit-minutes", type=float, default=30.0, help="for all attempts at one run together (default 30)"
    )
    parser.add_argument("--max-concurrent", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--address", help="join the Ray cluster at this address, for instance auto")
    options = parser.parse_intermixed_args(arguments)
    options.overrides = [text for text in options.experiments if "=" in text and not Path(text).exists()]
    options.experiments = [Path(text) for text in options.experiments if text not in options.overrides]
    if not options.experiments:
        parser.error("a folder of arms is needed")
    if options.limit_minutes <= 0 or options.max_concurrent < 1 or min(options.seeds) < 0:
        parser.error("--limit-minutes and --max-concurrent must be positive, seeds 0 or more")
    return options


def _checked(
    runs: Sequence[PlannedRun], overrides: Sequence[str], address: str | None
) -> list[ExperimentConfig]:
    """Every run's experiment; raises ConfigError with everything that is wrong before anything starts."""
    for text in overrides:
        if text.split("=")[0] in ("seed", "output_dir"):
            raise ConfigError([f"{text}: the sweep decides that; see --seeds and --out"])
    experiments, problems, examined = [], [], set()
    if address is not None:
        problems += [found.text for found in examine_address(address)]
    for run in runs:
        own = [*overrides, f"output_dir={run.folder}", f"seed={run.seed}"]
        experiment = load_experiment(run.arm.path, own)
        experiments.append(experiment)
        problems += contradictions(run, experiment)
        if run.arm.name in examined:
            continue
        examined.add(run.arm.name)
        findings = examine_inputs(experiment)
        findings += [] if address is not None else examine_machine(experiment)
        problems += [
            f"{run.arm.path}: {found.subject}: {found.text}" for found in findings if found.verdict != "ok"
        ]
    if problems:
        raise ConfigError(problems)
    return experiments


def _trial(
    run: PlannedRun, program: Sequence[str], overrides: Sequence[str], limit_s: float
) -> dict[str, Any]:
    return {
        "title": run.title,
        "folder": str(run.folder),
        "program": list(program),
        "arm": str(run.arm.path),
        "overrides": list(overrides),
        "cwd": os.getcwd(),
        "limit_s": limit_s,
    }


if __name__ == "__main__":
    write_any_character()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())

"""`serl-run`: train, check, evaluate or resume one experiment.

Exit codes: 0 done (or stopped by Ctrl-C with a checkpoint saved), 2 bad input, 1 failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType

from serl.algorithm_state import CheckpointError, read_algorithm_state
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.config.renamed import former_keys
from serl.config.yaml_files import read_mapping
from serl.models.resolve import ModelPathError, resolve_model
from serl.run.checkpoint import latest_checkpoint
from serl.run.preflight import Finding, examine, examine_inputs, examine_judge, examine_machine
from serl.run.resume import check_resumable
from serl.run.run_dir import CONFIG, RunDir, config_yaml

DONE, FAILED, BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    try:
        if options.evaluate:
            read_algorithm_state(options.evaluate)
        checkpoint = latest_checkpoint(options.resume) if options.resume else None
        experiment = _experiment(options)
        if options.check:
            return _check(experiment, options.address)
        _refuse(examine_inputs(experiment))
        if not options.evaluate:
            resolve_model(experiment.model.path)
        # A cluster that was joined may still grow; this machine will not.
        findings = [] if options.address else examine_machine(experiment)
        findings += [] if options.evaluate else examine_judge(experiment)
        if missing := [found.text for found in findings if found.verdict == "missing"]:
            print("\n".join(missing), file=sys.stderr)
            return FAILED
        run_dir = _open_run_dir(options, experiment)
    except (ConfigError, CheckpointError, ModelPathError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return _run(experiment, run_dir, checkpoint, options)


def _refuse(findings: Iterable[Finding]) -> None:
    wrong = [f"{found.subject}: {found.text}" for found in findings if found.verdict == "wrong"]
    if wrong:
        raise ConfigError(wrong)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serl-run",
        usage="serl-run EXPERIMENT.yaml [key.path=value …] "
        "[--check | --evaluate CHECKPOINT | --resume RUN_DIR] [--address ADDRESS]",
        description="Trains a language model agent as EXPERIMENT.yaml says.",
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--check", action="store_true", help="say what is wrong or missing, and start nothing")
    task.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="only play the evaluation")
    task.add_argument("--resume", type=Path, metavar="RUN_DIR", help="resume from its newest checkpoint")
    parser.add_argument("--address", help="join the Ray cluster at this address, for instance auto")
    options = parser.parse_intermixed_args(arguments)
    if options.experiment and "=" in options.experiment and not Path(options.experiment).exists():
        options.overrides.insert(0, options.experiment)
        options.experiment = None
    if options.experiment is None and not (options.evaluate or options.resume):
        parser.error("an EXPERIMENT.yaml is needed")
    return options


def _experiment(options: argparse.Namespace) -> ExperimentConfig:
    """From the file given, else from the run that is resumed or that the checkpoint belongs to."""
    if options.experiment and not options.resume:
        return load_experiment(options.experiment, options.overrides)
    recorded = (options.resume or options.evaluate.absolute().parents[1]) / CONFIG
    if former := former_keys(read_mapping(recorded)):
        print(f"{recorded} is by an older version of SERL; translated: {', '.join(former)}")
    if options.experiment:
        experiment = load_experiment(options.experiment, options.overrides)
    else:
        experiment = load_experiment(recorded, options.overrides, recorded=True)
    if options.resume:
        for change in check_resumable(load_experiment(recorded, recorded=True), experiment):
            print(f"changed since the run began: {change}")
    return experiment


def _check(experiment: ExperimentConfig, address: str | None) -> int:
    """Prints the resolved YAML and, as comments below it, what was found."""
    print(config_yaml(experiment))
    findings = examine(experiment, address)
    for found in findings:
        for line in _comment(found):
            print(line)
    verdicts = {found.verdict for found in findings}
    if "wrong" in verdicts:
        return BAD_INPUT
    return FAILED if "missing" in verdicts else DONE


def _comment(found: Finding) -> Iterable[str]:
    first, *more = f"{found.verdict:<7} {found.subject}: {found.text}".splitlines()
    yield f"# {first}"
    for line in more:
        yield f"#   {line}"


def _open_run_dir(options: argparse.Namespace, experiment: ExperimentConfig) -> RunDir:
    try:
        if options.resume:
            return RunDir.reopen(options.resume, experiment)
        return RunDir.create(experiment, purpose="evaluation" if options.evaluate else "")
    except OSError as error:
        raise ConfigError([f"output_dir = {experiment.output_dir!r}: {error.strerror}"]) from error


def _run(
    experiment: ExperimentConfig, run_dir: RunDir, checkpoint: Path | None, options: argparse.Namespace
) -> int:
    """Evaluates, or trains to the end or to the first Ctrl-C."""
    stop = stop_on_signal()
    # These import torch, for which nothing above should wait.
    from serl.iteration import TrainingInterrupted
    from serl.run.console import Console
    from serl.run.train import evaluate_checkpoint, train

    console = Console(experiment.logging.progress_bar)
    console.begin(run_dir.path)
    try:
        if options.evaluate:
            evaluate_checkpoint(experiment, options.evaluate, run_dir, console, stop, address=options.address)
        elif not train(experiment, run_dir, console, stop, resume=checkpoint, address=options.address):
            console.note(f"stopped; to resume: serl-run --resume {run_dir.path}")
    except TrainingInterrupted as interruption:
        console.note(str(interruption))
        return FAILED
    finally:
        console.close()
        run_dir.metrics.close()
    return DONE


def stop_on_signal() -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process at once."""
    stop = threading.Event()
    terminal = os.dup(2)  # standard error itself goes to a file while the cluster starts and stops

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        os.write(terminal, b"\nstopping: saving a checkpoint; once more to stop at once\n")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


if __name__ == "__main__":
    sys.exit(main())

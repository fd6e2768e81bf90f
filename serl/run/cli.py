"""`serl-run`: train, check, evaluate or resume one experiment.

Exit codes: 0 done (or stopped by a signal with a checkpoint saved), 2 bad input, 1 failed; 128 and the number
of a signal that ended everything at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serl.algorithm_state import CheckpointError
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.config.renamed import former_keys
from serl.config.yaml_files import read_mapping
from serl.manifest import verify_checkpoint
from serl.models.resolve import ModelPathError, ready_folder, resolve_model
from serl.run.checkpoint import CHECKPOINTS
from serl.run.console import Console, silence
from serl.run.ending import explain
from serl.run.guardian import Guardian
from serl.run.preflight import (
    Finding,
    examine,
    examine_address,
    examine_checkpoint,
    examine_inputs,
    examine_judge,
    examine_machine,
)
from serl.run.resume import (
    check_evaluable,
    check_resumable,
    checkpoint_to_resume,
    is_complete,
    require_run_dir,
)
from serl.run.run_dir import CONFIG, RunDir, config_yaml
from serl.run.stop import StopRequest, stop_on_signal
from serl.run.surroundings import (
    address_to_join,
    reach_local_hosts_directly,
    stop_wait_note,
    write_any_character,
)
from serl.run.writer_lock import RunDirInUseError, WriterLock
from serl.serving.weights_folder import release_all_folders

if TYPE_CHECKING:
    from serl.run.checkpoint_copies import CheckpointCopies

DONE, FAILED, BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Without ``arguments`` those of this process, which then hears signals as `serl.run.stop` says.
    """
    stop = stop_on_signal() if arguments is None else StopRequest()
    stop.nothing_to_save = True
    write_any_character()
    options = _parse(arguments)
    reach_local_hosts_directly(options.address)
    with ExitStack() as held:
        stop.before_ending = [held.close]
        try:
            prepared = _prepare(options, held)
        except (ConfigError, CheckpointError, ModelPathError, RunDirInUseError) as error:
            print(error, file=sys.stderr)
            return BAD_INPUT
        except OSError as error:  # a path that was given, or a file of its run, cannot be read
            print(f"{error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
            return BAD_INPUT
        return prepared if isinstance(prepared, int) else _run(prepared, options, stop, held)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A run that can start, or resume from ``checkpoint``; ``lock`` keeps others out of its folder."""

    experiment: ExperimentConfig
    run_dir: RunDir
    lock: WriterLock
    checkpoint: Path | None


def _prepare(options: argparse.Namespace, held: ExitStack) -> _Prepared | int:
    """Everything before the run, or an exit code if that was all; ``held`` gives the folder up."""
    if options.evaluate:
        verify_checkpoint(options.evaluate)
    folder: Path | None = options.resume or options.resume_or_start
    lock = checkpoint = None
    if folder is not None:
        require_run_dir(folder, new=bool(options.resume_or_start))
        if folder.exists():
            lock = _lock(folder, held)
        start = bool(options.resume_or_start)
        copies = _copies(options, folder) if start else None
        if copies is None:
            checkpoint = checkpoint_to_resume(folder, start)
        else:
            lock = lock or _lock(folder, held)
            checkpoint = checkpoint_to_resume(folder, start, fetch=copies.fetch_newest)
    experiment = _experiment(options, checkpoint)
    if options.evaluate:
        check_evaluable(experiment, options.evaluate)
    if options.check:
        return _check(experiment, options.address)
    if folder is not None and checkpoint is not None and is_complete(experiment, folder, checkpoint):
        print(f"{folder} is complete: {experiment.training.num_iterations} iterations")
        return DONE
    _refuse(examine_inputs(experiment, folder))
    if options.evaluate:
        _refuse(examine_checkpoint(options.evaluate))
    if not options.evaluate:
        was_ready = ready_folder(experiment.model.path) is not None
        resolve_model(experiment.model.path)
        if not was_ready:  # only now there is a tokenizer to look at
            _refuse(examine_inputs(experiment, folder))
    # A cluster that was joined may still grow; this machine will not.
    address = options.address
    findings = examine_address(address) if address else examine_machine(experiment)
    findings += [] if options.evaluate else examine_judge(experiment)
    if missing := [found.text for found in findings if found.verdict == "missing"]:
        print("\n".join(missing), file=sys.stderr)
        return FAILED
    try:
        if folder is None:
            run_dir = RunDir.create(experiment, purpose="evaluation" if options.evaluate else "")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock or _lock(folder, held)
            run_dir = RunDir.reopen(folder, experiment)
    except OSError as error:
        where = f"output_dir = {experiment.output_dir!r}" if folder is None else str(folder)
        raise ConfigError([f"{where}: {error.strerror}"]) from error
    return _Prepared(experiment, run_dir, lock or _lock(run_dir.path, held), checkpoint)


def _copies(options: argparse.Namespace, folder: Path) -> CheckpointCopies | None:
    """Where checkpoints of ``folder``, which is made, are copied to, with ``checkpoint.copy_to``."""
    checkpoint = load_experiment(options.experiment, options.overrides).checkpoint
    if checkpoint.copy_to is None:
        return None
    from serl.run.checkpoint_copies import CheckpointCopies

    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    return CheckpointCopies(checkpoint.copy_to, folder, checkpoint.keep)


def _lock(folder: Path, held: ExitStack) -> WriterLock:
    try:
        lock = WriterLock.acquire(folder)
    except OSError as error:
        raise ConfigError([f"{folder}: {error.strerror}"]) from error
    held.callback(lock.release)
    return lock


def _refuse(findings: Iterable[Finding]) -> None:
    wrong = [f"{found.subject}: {found.text}" for found in findings if found.verdict == "wrong"]
    if wrong:
        raise ConfigError(wrong)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serl-run",
        usage="serl-run EXPERIMENT.yaml [key.path=value …] [--address ADDRESS] "
        "[--check | --evaluate CHECKPOINT | --resume RUN_DIR | --resume-or-start RUN_DIR]",
        description="Trains a language model agent as EXPERIMENT.yaml says.",
    )
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--check", action="store_true", help="say what is wrong or missing, and start nothing")
    task.add_argument("--evaluate", type=_path, metavar="CHECKPOINT", help="only play the evaluation")
    task.add_argument("--resume", type=_path, metavar="RUN_DIR", help="resume from its newest checkpoint")
    task.add_argument(
        "--resume-or-start",
        type=_path,
        metavar="RUN_DIR",
        help="resume from its newest checkpoint, or start in this folder where there is none; does nothing, "
        "and ends with 0, where the run is complete: one command for jobs that are started again",
    )
    parser.add_argument(
        "--address",
        type=_given,
        help="join the Ray cluster at this address, such as auto; local: start one whatever RAY_ADDRESS says",
    )
    options = parser.parse_intermixed_args(arguments)
    joined = address_to_join(options.address)
    if joined and not options.address:
        print(f"RAY_ADDRESS: this run joins the Ray cluster at {joined}", file=sys.stderr)
    options.address = joined
    if options.experiment and "=" in options.experiment and not Path(options.experiment).exists():
        options.overrides.insert(0, options.experiment)
        options.experiment = None
    if options.experiment is None and not (options.evaluate or options.resume):
        parser.error("an EXPERIMENT.yaml is needed")
    return options


def _given(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("no value: is a variable not set?")
    return text


def _path(text: str) -> Path:
    return Path(_given(text))


def _experiment(options: argparse.Namespace, checkpoint: Path | None) -> ExperimentConfig:
    """From the file given, else from the run that is resumed or that the checkpoint belongs to."""
    if options.experiment and checkpoint is None:
        return load_experiment(options.experiment, options.overrides)
    belongs_to = (checkpoint or options.evaluate).absolute()
    recorded = belongs_to.parents[1] / CONFIG
    if former := former_keys(read_mapping(recorded)):
        print(f"{recorded} is by an older version of SERL; translated: {', '.join(former)}")
    if options.experiment:
        experiment = load_experiment(options.experiment, options.overrides)
    else:
        experiment = load_experiment(recorded, options.overrides, recorded=True)
    if checkpoint is not None:
        for change in check_resumable(load_experiment(recorded, recorded=True), experiment):
            print(f"changed since the run began: {change}")
    return experiment


def _check(experiment: ExperimentConfig, address: str | None) -> int:
    """Prints the resolved YAML and, as comments below it, what was found."""
    _say(config_yaml(experiment))
    findings = examine(experiment, address)
    _say("\n".join(line for found in findings for line in _comment(found)))
    verdicts = {found.verdict for found in findings}
    if "wrong" in verdicts:
        return BAD_INPUT
    return FAILED if "missing" in verdicts else DONE


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # who reads it, such as `head`, has seen enough
        silence(sys.stdout)


def _comment(found: Finding) -> Iterable[str]:
    first, *more = f"{found.verdict:<7} {found.subject}: {found.text}".splitlines()
    yield f"# {first}"
    for line in more:
        yield f"#   {line}"


def _run(prepared: _Prepared, options: argparse.Namespace, stop: StopRequest, held: ExitStack) -> int:
    """Evaluates, or trains to the end or to the first signal that asks to stop."""
    experiment, run_dir = prepared.experiment, prepared.run_dir
    stop.guardian = Guardian.start(run_dir.path)
    held.callback(release_all_folders)
    prepared.lock.on_lost = lambda why: stop.end_at_once(FAILED, why)
    # These import Ray, for which nothing above should wait.
    from serl.batch.assemble import NothingToTrainError
    from serl.iteration import TrainingInterrupted
    from serl.run.nodes import NodesLackError
    from serl.run.train import evaluate_checkpoint, train

    console = Console(experiment.logging.progress_bar)
    console.begin(run_dir.path)
    if note := stop_wait_note():
        console.note(note)
    address, code = options.address, FAILED
    try:
        if options.evaluate:
            evaluate_checkpoint(experiment, options.evaluate, run_dir, console, stop, address=address)
        elif not train(experiment, run_dir, console, stop, resume=prepared.checkpoint, address=address):
            console.note(f"stopped; to resume: serl-run --resume {run_dir.path}")
        code = DONE
    except (TrainingInterrupted, CheckpointError, NothingToTrainError, NodesLackError) as error:
        console.note(str(error))
    except Exception as error:
        told = explain(error, run_dir)
        if told is not None:
            console.note(told)
        elif not stop.shutdown_hangs:
            raise
        else:
            traceback.print_exc()
    finally:
        stop.expect_end()
        console.close()
        run_dir.metrics.close()
        # Of what ended in order nothing is left.
        stop.kill_descendants()
    if stop.shutdown_hangs:
        stop.end_at_once(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

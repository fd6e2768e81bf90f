"""SERL and TRL's GRPOTrainer by turns, each alone, for the same time, in a process of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serl.config import ExperimentConfig
from tools.bench.figures import Figures
from tools.bench.peers.arms import Arm, arms, described, in_turn, report
from tools.bench.peers.environment import TRL, default_folder, ready_environment
from tools.bench.peers.iterations import Iteration, read_iterations

# What a turn may take beside what it measures: its start, and two slow iterations.
_TURN_TIMEOUT_S = 3600.0
_SHOWN_OUTPUT = 4000
# By itself Ray gives its workers a lower priority than a peer's process has.
_VARIABLES = {"RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1"}
_ROOT = Path(__file__).resolve().parents[3]


def peers(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    pythons = {
        "serl_program": Path(sys.executable),
        "trl_program": ready_environment(options.environment or default_folder()),
    }
    shared = [str(options.experiment.resolve()), *options.overrides, f"model.path={experiment.model.path}"]
    training = experiment.training
    figures.note(
        f"{experiment.model.path}: {training.groups_per_batch} groups of {training.group_size}, at most "
        f"{experiment.env.max_steps} steps, {experiment.learner.num_minibatches} minibatches; {TRL}; "
        f"{options.repetitions} turns each, of {options.seconds} s after a first iteration"
    )
    sides = arms(options.vllm, options.peer_rows)
    courses: dict[str, list[list[Iteration]]] = {arm.name: [] for arm in sides}
    for repetition in range(options.repetitions):
        for arm in in_turn(sides, repetition):
            course = _turn(arm, pythons[arm.program], shared, options.seconds)
            courses[arm.name].append(course)
            figures.note(f"  {arm.name}, turn {repetition + 1}: {described(course)}")
    report(courses, figures)


def _turn(arm: Arm, python: Path, shared: Sequence[str], measured_s: float) -> list[Iteration]:
    """Raises RuntimeError if the side's program fails, with the end of what it said."""
    with tempfile.TemporaryDirectory(prefix="serl-bench-") as folder:
        output = Path(folder) / "iterations.jsonl"
        command = [str(python), "-m", f"tools.bench.peers.{arm.program}"]
        command += [f"--seconds={measured_s}", f"--output={output}", *arm.options, *shared, *arm.overrides]
        ended = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | _VARIABLES | {"PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            timeout=_TURN_TIMEOUT_S + measured_s,
            check=False,
        )
        if ended.returncode:
            said = f"{ended.stdout}{ended.stderr}"[-_SHOWN_OUTPUT:]
            raise RuntimeError(f"{' '.join(command)} failed ({ended.returncode}): {said}")
        return read_iterations(output)

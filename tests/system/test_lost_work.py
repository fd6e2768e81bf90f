"""Stopped, killed and started again: the same command, and no update is lost or left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serl.algorithm_state import read_algorithm_state
from serl.run.checkpoint import list_checkpoints
from serl.run.evaluations import read_evaluations
from serl.run.processes import descendants
from serl.run.writer_lock import read_writer

_REPOSITORY = Path(__file__).resolve().parents[2]
_SMALL = (
    "name=lost_work",
    "training.groups_per_batch=2",
    "training.group_size=4",
    "env.max_steps=6",
    "evaluation.num_tasks=12",
    "evaluation.at_start=true",
    "checkpoint.interval=0",
)


class _Process:
    """A `serl-run --resume-or-start` of the quickstart, and everything below it."""

    def __init__(self, run_dir: Path, num_iterations: int) -> None:
        command = [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml", *_SMALL]
        length = f"training.num_iterations={num_iterations}"
        self.console = run_dir.with_name(f"{run_dir.name}-console")
        with self.console.open("w") as console:
            self.process = subprocess.Popen(
                [*command, length, "--resume-or-start", run_dir],
                cwd=_REPOSITORY,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 400.0
        while not condition():
            assert self.process.poll() is None, self.console.read_text()
            assert time.monotonic() < deadline, self.console.read_text()
            time.sleep(0.1)

    def send_to_all(self, number: signal.Signals) -> list[int]:
        """As Slurm ends a job step: to each process; returns their ids."""
        found = [self.process.pid, *descendants(self.process.pid)]
        for pid in found:
            os.kill(pid, number)
        return found

    def end(self, timeout_s: float = 400.0) -> tuple[int, str]:
        return self.process.wait(timeout=timeout_s), self.console.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int], _Process]]:
    started: list[_Process] = []

    def start_one(num_iterations: int) -> _Process:
        started.append(_Process(tmp_path / "run", num_iterations))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.process.kill()


def _updates(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row["iteration"] for row in rows if "learner/loss" in row]


def _weights_in_shared_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("serl-weights-*"))


def _wait_until_gone(pids: list[int]) -> None:
    """A process that init has not reaped yet counts as gone."""
    deadline = time.monotonic() + 20.0
    while living := [pid for pid in pids if _lives(pid)]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in living]
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_command_starts_is_stopped_with_all_its_processes_resumes_and_is_complete(
    tmp_path: Path, start: Callable[[int], _Process]
) -> None:
    run_dir = tmp_path / "run"
    died_early = start(500)
    died_early.wait_until(lambda: (run_dir / "config.yaml").exists())
    died_early.process.kill()
    died_early.process.wait(timeout=60)
    before = _weights_in_shared_memory()

    stopped = start(500)
    stopped.wait_until(lambda: len(_updates(run_dir)) >= 2)
    refused = start(500)
    code, said = refused.end()
    assert code == 2 and f"{run_dir} is being written by process {stopped.process.pid} on " in said
    assert list_checkpoints(run_dir / "checkpoints") == []
    sent = time.monotonic()
    pids = stopped.send_to_all(signal.SIGTERM)
    assert len(pids) > 6, "the cluster is not below the run"
    code, said = stopped.end()
    seconds = time.monotonic() - sent
    updates = _updates(run_dir)
    assert code == 0 and f"stopped; to resume: serl-run --resume {run_dir}" in said, said
    assert updates == list(range(1, len(updates) + 1))
    (checkpoint,) = list_checkpoints(run_dir / "checkpoints")
    assert read_algorithm_state(checkpoint)["weights_seq_no"] == updates[-1]
    assert seconds < 60.0
    _wait_until_gone(pids)
    assert _weights_in_shared_memory() <= before
    assert read_writer(run_dir) is None

    num_iterations = updates[-1] + 1
    code, said = start(num_iterations).end()
    assert code == 0, said
    assert _updates(run_dir) == list(range(1, num_iterations + 1))
    assert [played.weights_seq_no for played in read_evaluations(run_dir)] == [0, num_iterations]

    code, said = start(num_iterations).end()
    assert (code, said) == (0, f"{run_dir} is complete: {num_iterations} iterations\n")


def test_a_second_signal_leaves_neither_processes_nor_weights(
    tmp_path: Path, start: Callable[[int], _Process]
) -> None:
    before = _weights_in_shared_memory()
    run = start(500)
    run.wait_until(lambda: len(_updates(tmp_path / "run")) >= 1)
    assert _weights_in_shared_memory() - before
    pids = run.send_to_all(signal.SIGHUP)
    time.sleep(1.0)
    run.process.send_signal(signal.SIGTERM)
    code, said = run.end(timeout_s=60.0)
    assert code == 128 + signal.SIGTERM, said
    _wait_until_gone(pids)
    assert _weights_in_shared_memory() <= before
    assert read_writer(tmp_path / "run") is None


def test_an_env_runner_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, start: Callable[[int], _Process]
) -> None:
    run_dir = tmp_path / "run"
    run = start(500)
    run.wait_until(lambda: len(_updates(run_dir)) >= 1)
    pids = descendants(run.process.pid)
    (runner,) = [pid for pid in pids if "SERLEnvRunner" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(runner, signal.SIGSTOP)
    sent = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code, said = run.end(timeout_s=300.0)
    seconds = time.monotonic() - sent
    assert code == 0 and "stopped; to resume: serl-run --resume" in said, said
    (checkpoint,) = list_checkpoints(run_dir / "checkpoints")
    assert read_algorithm_state(checkpoint)["weights_seq_no"] == _updates(run_dir)[-1]
    _wait_until_gone(pids)
    assert seconds < 60.0

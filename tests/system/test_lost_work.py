"""Told to end, or left by its cluster: a run saves what it has, ends soon, and leaves nothing running.

How runs go on after that, and after everything else, is `test_drill`'s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from serl.algorithm_state import read_algorithm_state
from serl.run.checkpoint import list_checkpoints
from serl.run.guardian import MARK
from serl.run.processes import descendants, name_of, processes_with
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

    def __init__(self, run_dir: Path, num_iterations: int, *overrides: str) -> None:
        command = [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml", *_SMALL]
        length = f"training.num_iterations={num_iterations}"
        self.console = run_dir.with_name(f"{run_dir.name}-console")
        with self.console.open("w") as console:
            self.process = subprocess.Popen(
                [*command, length, *overrides, "--resume-or-start", run_dir],
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

    def below(self, name: str) -> int:
        """The id of the process below it that is called ``name``."""
        (found,) = [pid for pid in descendants(self.process.pid) if name_of(pid) == name]
        return found

    def env_runner(self) -> int:
        pids = descendants(self.process.pid)
        (found,) = [pid for pid in pids if "SERLEnvRunner" in Path(f"/proc/{pid}/cmdline").read_text()]
        return found

    def in_shared_memory(self) -> set[Path]:
        """What the run has open there: the lock of its weights' folder, their versions, segments."""
        found: set[Path] = set()
        for pid in (self.process.pid, *descendants(self.process.pid)):
            for entry in Path(f"/proc/{pid}/fd").glob("*"):
                with suppress(OSError):
                    found.add(entry.readlink())
        return {file for file in found if file.is_relative_to("/dev/shm") and file.exists()}

    def send_to_all(self, number: signal.Signals) -> list[int]:
        """As Slurm ends a job step: to each process; returns their ids."""
        found = [self.process.pid, *descendants(self.process.pid)]
        for pid in found:
            os.kill(pid, number)
        return found

    def end(self, timeout_s: float = 400.0) -> tuple[int, str]:
        return self.process.wait(timeout=timeout_s), self.console.read_text()

    def end_after(self, fault: Callable[[], object]) -> tuple[int, str]:
        """Ends within a minute of ``fault``, and looks that nothing is left of the run."""
        environment = Path(f"/proc/{self.below('raylet')}/environ").read_text()
        (mark,) = [entry for entry in environment.split("\0") if entry.startswith(f"{MARK}=")]
        pids, in_memory = descendants(self.process.pid), self.in_shared_memory()
        assert in_memory
        fault()
        code, said = self.end(timeout_s=60.0)
        _wait_until_gone(pids)
        assert processes_with(*mark.split("=")) == []
        assert not [file for file in in_memory if file.exists()]
        return code, self.console.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., _Process]]:
    started: list[_Process] = []

    def start_one(num_iterations: int, *overrides: str) -> _Process:
        started.append(_Process(tmp_path / "run", num_iterations, *overrides))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.process.kill()


def _updates(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row["iteration"] for row in rows if "learner/lr" in row]


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


def test_a_signal_to_all_processes_ends_a_run_with_a_checkpoint_though_an_env_runner_hangs(
    tmp_path: Path, start: Callable[..., _Process]
) -> None:
    run_dir = tmp_path / "run"
    stopped = start(500, "learner.num_learners=2")
    stopped.wait_until(lambda: len(_updates(run_dir)) >= 2)
    assert list_checkpoints(run_dir / "checkpoints") == []
    os.kill(stopped.env_runner(), signal.SIGSTOP)
    code, said = stopped.end_after(lambda: stopped.send_to_all(signal.SIGTERM))
    updates = _updates(run_dir)
    assert code == 0 and f"stopped; to resume: serl-run --resume {run_dir}" in said, said
    assert updates == list(range(1, len(updates) + 1))
    (checkpoint,) = list_checkpoints(run_dir / "checkpoints")
    assert read_algorithm_state(checkpoint)["weights_seq_no"] == updates[-1]
    assert read_writer(run_dir) is None


def test_a_cluster_that_answers_no_more_ends_its_run_soon_and_leaves_nothing(
    tmp_path: Path, start: Callable[..., _Process]
) -> None:
    run_dir = tmp_path / "run"
    silent_gcs = start(500, "checkpoint.interval=1", "cluster.heartbeat_timeout_s=15.0")
    silent_gcs.wait_until(lambda: bool(list_checkpoints(run_dir / "checkpoints")))
    gcs = silent_gcs.below("gcs_server")
    code, said = silent_gcs.end_after(lambda: os.kill(gcs, signal.SIGSTOP))
    assert code == 1, said
    assert "Ray's GCS has not answered for 15 s" in said
    assert f": serl-run --resume {run_dir}" in said

"""`DrilledRun`: the quickstart, cut short, as `serl-run --resume-or-start` that can be started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from serl.config.load import load_experiment
from serl.run.processes import descendants, kill_descendants
from serl.serving.weights_folder import remove_stale_folders
from tools.drill.books import Row, evaluation_rows, update_rows
from tools.drill.processes import kind_of, not_in_use, processes_below, shared_memory_files, title_of

_REPOSITORY = Path(__file__).resolve().parents[2]
_EXPERIMENT = "experiments/quickstart.yaml"
GROUPS_PER_BATCH, GROUP_SIZE = 4, 4
# Every task is trained, so that what was dealt can be accounted for; every trajectory is recorded.
SETTINGS = (
    "name=drill",
    f"training.groups_per_batch={GROUPS_PER_BATCH}",
    f"training.group_size={GROUP_SIZE}",
    "training.filter_groups=false",
    "env.max_steps=6",
    "evaluation.num_tasks=12",
    "evaluation.interval=3",
    "checkpoint.interval=2",
    "cluster.heartbeat_timeout_s=10",
    "rollout.start_timeout_s=90",
    "learner.start_timeout_s=90",
    "serving.start_timeout_s=90",
    f"logging.trajectories_per_iteration={GROUPS_PER_BATCH * GROUP_SIZE}",
    "logging.progress_bar=false",
)
_POLL_S = 0.1
_KILL_TIMEOUT_S = 20.0


class RunEndedError(RuntimeError):
    """The run ended while something else was waited for."""


class DrilledRun:
    """Below ``folder``: the run directory ``run`` and what each start printed.

    Whoever uses it must have adopted orphans (`serl.run.processes.adopt_orphans`) and have no other children.
    Raises ConfigError if ``overrides`` are wrong.
    """

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.run_dir = folder / "run"
        self.num_starts = 0
        self._folder = folder
        self._overrides = [*SETTINGS, *overrides]
        self.experiment = load_experiment(_REPOSITORY / _EXPERIMENT, self._overrides)
        self._shared_before = shared_memory_files()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def console(self) -> Path:
        """What the present process prints."""
        return self._folder / f"console-{self.num_starts}.txt"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.num_starts += 1
        command = [sys.executable, "-m", "serl.run.cli", _EXPERIMENT, *self._overrides]
        with self.console.open("wb") as console:
            self._process = subprocess.Popen(
                [*command, "--resume-or-start", self.run_dir],
                cwd=_REPOSITORY,
                stdout=console,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,
            )

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code of the process; raises TimeoutError."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"serl-run has not ended within {timeout_s:.0f} s") from error

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float, poll_s: float = _POLL_S
    ) -> None:
        """Raises TimeoutError, and RunEndedError if the process ends first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.ended:
                raise RunEndedError(f"the run ended before {what}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
            time.sleep(poll_s)

    def processes(self, kind: str | None = None) -> list[int]:
        """Ids of its living processes, of one kind or all of them."""
        return sorted(pid for pid, found in processes_below(self.pid).items() if kind in (None, found))

    def wait_for_processes(self, kind: str, timeout_s: float) -> list[int]:
        self.wait_until(lambda: bool(self.processes(kind)), f"a process {kind}", timeout_s)
        return self.processes(kind)

    def updates(self) -> list[Row]:
        return update_rows(self.run_dir)

    def evaluations(self) -> list[Row]:
        return evaluation_rows(self.run_dir)

    def is_complete(self) -> bool:
        last = self.experiment.training.num_iterations
        return any(row["iteration"] == last for row in self.evaluations())

    def leftovers(self, timeout_s: float) -> list[str]:
        """What is left of it after ``timeout_s``: processes, and files in shared memory that nobody uses."""
        deadline = time.monotonic() + timeout_s
        while True:
            living = [pid for pid in descendants() if title_of(pid)]
            files = not_in_use(shared_memory_files() - self._shared_before)
            if not (living or files) or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        processes = [f"process {pid} ({kind_of(title_of(pid))}: {title_of(pid)[:80]})" for pid in living]
        return processes + [str(file) for file in files]

    def end_everything(self) -> None:
        """Whatever is left of it is killed, and freed in shared memory."""
        kill_descendants(_KILL_TIMEOUT_S)
        remove_stale_folders()
        if self._process is not None:
            self._process.wait()

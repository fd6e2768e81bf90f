"""One run of a sweep as a Tune trial: `serl-run` in a process of its own."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from ray import tune

from tools.sweep.runs import Attempt, Outcome, add_attempt, attempts, finished_run, resumable_run

_POLL_S = 2.0
# serl-run saves a checkpoint when it is told to stop.
_STOP_TIMEOUT_S = 120.0
# What Ray tells its workers and a run must not hear: threads are its own choice.
_OF_THE_WORKER = ("RAY_JOB_ID", "RAY_RAYLET_PID", "OMP_NUM_THREADS")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class SerlRun(tune.Trainable):
    """Starts or continues one run and watches it.

    ``config["run"]``: ``folder`` (of the run), ``program`` (how serl-run is called), ``arm`` (its file),
    ``overrides``, ``cwd``, and ``limit_s``, seconds for all attempts at the run together.
    """

    def setup(self, config: dict[str, Any]) -> None:
        config = config["run"]
        self._folder = Path(config["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)
        before = attempts(self._folder)
        self._started = time.time()
        self._deadline = time.monotonic() + config["limit_s"] - sum(attempt.seconds for attempt in before)
        self._log = self._folder / f"attempt_{len(before) + 1}.log"
        self._command = self._serl_run(config)
        self._process: subprocess.Popen[str] | None = None
        self._attempt: Attempt | None = None
        # The run inherits the lock, so it is held as long as the run lives, even if this process does not.
        self._lock = (self._folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._end("failed", None, "another process still runs it")
            return
        with self._log.open("w", encoding="utf-8") as log:
            self._process = self._start(config["cwd"], log)

    def step(self) -> dict[str, Any]:
        """Returns within seconds; ``done`` when the run has ended, with the fields of `Attempt`."""
        if self._attempt is None:
            self._watch()
        if self._attempt is None:
            return {"done": False}
        return {"done": True, **asdict(self._attempt)}

    def cleanup(self) -> None:
        """A run that still goes is told to stop, and given time for its checkpoint."""
        if self._attempt is None:
            self._end("interrupted", self._stop(), "the sweep was interrupted")
        self._lock.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run has its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a new trial finds what there is to continue."""

    def _serl_run(self, config: dict[str, Any]) -> list[str]:
        run_dir = resumable_run(self._folder)
        what = (
            [config["arm"], f"output_dir={self._folder}"] if run_dir is None else ["--resume", str(run_dir)]
        )
        return [*config["program"], *what, *config["overrides"]]

    def _start(self, cwd: str, log: TextIO) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_WORKER}
        # A cluster of its own, also on a node of the cluster that the sweep has joined.
        environment["RAY_ADDRESS"] = "local"
        return subprocess.Popen(
            self._command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            pass_fds=(self._lock.fileno(),),
            preexec_fn=_stop_with_the_parent,
        )

    def _watch(self) -> None:
        assert self._process is not None
        remaining = self._deadline - time.monotonic()
        try:
            exit_code = self._process.wait(max(0.0, min(_POLL_S, remaining)))
        except subprocess.TimeoutExpired:
            if remaining <= 0.0:
                self._end("over the limit", self._stop(), "stopped at the sweep's time limit")
            return
        if finished_run(self._folder) is not None:
            self._end("finished", exit_code, "")
        elif exit_code == 0:
            self._end("interrupted", exit_code, "stopped from outside")
        else:
            self._end("failed", exit_code, self._last_line())

    def _stop(self) -> int | None:
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _end(self, outcome: Outcome, exit_code: int | None, message: str) -> None:
        if finished_run(self._folder) is not None:
            outcome, message = "finished", ""
        seconds = round(time.time() - self._started, 1)
        log = self._log.name
        self._attempt = Attempt(outcome, self._command, log, self._started, seconds, exit_code, message)
        add_attempt(self._folder, self._attempt)

    def _last_line(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "it printed nothing"


def _stop_with_the_parent() -> None:
    """In the new process: told to stop when the trial's process dies without having stopped it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""A process beside the driver that outlives it, and ends what the driver can end no longer.

Whoever is killed, or ended by Ray because its cluster is gone, cleans nothing up: actors, agents and weights
in shared memory stay. The guardian is told when the driver begins to end and when it has; if the driver is
gone without a word, or does not come to its end in time, the guardian kills the processes of the run, frees
its shared memory and says so. It finds them by a variable in their environment (Ray's agents overwrite theirs
with a title) and by what it saw below the driver. It imports nothing heavy. Where there is no ``/proc`` it
frees the weights and finds no process.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import select
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

from serl.run.driver_log import log_to_file
from serl.run.processes import descendants, kill_all, processes_with, started
from serl.serving.weights_folder import remove_stale_folders

MARK = "SERL_RUN_MARK"
# Within the minute that a run may take to end once it has decided to.
END_TIMEOUT_S = 50.0

_ENDING, _GOODBYE = b"e", b"g"
_LOOK_INTERVAL_S = 2.0
_KILL_TIMEOUT_S = 8.0
_SCRIPT = "import sys; sys.path.append(sys.argv[1]); from serl.run.guardian import main; main(*sys.argv[2:])"


class Guardian:
    """The driver's side. Processes that start after `start` carry the run's mark in their environment."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, run_dir: Path, end_timeout_s: float = END_TIMEOUT_S) -> Guardian:
        """To be called once signals are blocked, which the guardian inherits, and before Ray starts."""
        mark, root = uuid.uuid4().hex, str(Path(__file__).parents[2])
        arguments = [root, str(os.getpid()), mark, str(run_dir), str(end_timeout_s)]
        command = [sys.executable, "-P", "-c", _SCRIPT, *arguments]
        # Not in the terminal's session: nothing that is sent to all of that ends it.
        guardian = cls(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
        )
        os.environ[MARK] = mark
        atexit.register(guardian.dismiss)
        return guardian

    @property
    def pid(self) -> int:
        return self._process.pid

    def expect_end(self) -> None:
        """From the first call on the driver has ``end_timeout_s`` to end."""
        self._tell(_ENDING)

    def dismiss(self) -> None:
        """The driver leaves nothing behind."""
        self._tell(_GOODBYE)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)

    def _tell(self, word: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was killed itself
            os.write(self._process.stdin.fileno(), word)


def main(driver: str, mark: str, run_dir: str, end_timeout_s: str) -> None:
    """The guardian's side: until the driver has ended."""
    seen = {int(driver): started(int(driver))}
    why = _wait_for_end(int(driver), seen, float(end_timeout_s))
    if not why:
        return

    def of_the_run() -> set[int]:
        roots = {pid for pid, began in seen.items() if began and started(pid) == began}
        roots.update(processes_with(MARK, mark))
        return roots.union(descendants(*roots)) - {os.getpid()} if roots else set()

    killed = kill_all(of_the_run, _KILL_TIMEOUT_S)
    num_folders = remove_stale_folders()
    _say(Path(run_dir), f"serl-run (process {driver}) {why}", len(killed - {int(driver)}), num_folders)


def _wait_for_end(driver: int, seen: dict[int, str], end_timeout_s: float) -> str:
    """What went wrong with the driver, or nothing; ``seen`` gets the processes below it, with their start."""
    deadline = math.inf
    while time.monotonic() < deadline:
        readable, _, _ = select.select([0], [], [], _LOOK_INTERVAL_S)
        word = os.read(0, 1) if readable else None
        if word == _GOODBYE:
            return ""
        if word == _ENDING and deadline == math.inf:
            deadline = time.monotonic() + end_timeout_s
        # A process that was forked off the driver may keep the pipe open.
        if word == b"" or os.getppid() != driver:
            return "ended without a word, as after kill -9 or where memory runs out"
        seen.update((pid, started(pid)) for pid in descendants(driver) if pid not in seen)
    return f"did not end within {end_timeout_s:g} s"


def _say(run_dir: Path, what: str, num_killed: int, num_folders: int) -> None:
    from serl.run.checkpoint import how_to_go_on

    weights = ", its weights in shared memory are freed" if num_folders else ""
    text = f"{what}; {num_killed} processes that it left are ended{weights}. {how_to_go_on(run_dir)}"
    with suppress(OSError):  # there may be no terminal any more
        os.write(2, f"\n{text}\n".encode())
    log_to_file(run_dir / "logs" / "driver.log")
    logging.getLogger("serl.run.guardian").error("%s", text)

"""A driver that dies or never comes to its end, and who tidies up after it; Ray's processes are played."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from serl.serving.weights_folder import weights_folder

ROOT = Path(__file__).parents[2]

# Starts what a cluster starts: a child that dies with it, one in a session of its own whose environment is
# overwritten, and below that one whose parent will be gone, which holds a segment of shared memory.
_DRIVER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from serl.run.guardian import Guardian
from serl.run.stop import stop_on_signal
from serl.serving.weights_folder import claim_folder

run_dir, application, segment = sys.argv[1:]
stop = stop_on_signal()
stop.guardian = Guardian.start(Path(run_dir), end_timeout_s=1.0)
claim_folder(application)
holder = (
    "import mmap, sys, time; f = open('/dev/shm/' + sys.argv[1], 'w+b'); f.truncate(4096);"
    "m = mmap.mmap(f.fileno(), 4096); time.sleep(1000)"
)
subprocess.Popen(["setsid", "env", "-i", "sleep", "1000"])
subprocess.Popen(["sh", "-c", 'setsid "$@" & exec sleep 1000', "sh", sys.executable, "-c", holder, segment])
while not Path("/dev/shm", segment).exists():
    time.sleep(0.05)
time.sleep(3.0)
print("started", flush=True)
"""


class _Driver:
    def __init__(self, tmp_path: Path, ending: str) -> None:
        name = uuid.uuid4().hex
        self.run_dir, self.segment = tmp_path, Path("/dev/shm", f"serl-test-{name}")
        self.weights = weights_folder(f"serl-{name}")
        (tmp_path / "logs").mkdir()
        command = [sys.executable, "-c", _DRIVER + ending, str(tmp_path), f"serl-{name}"]
        self.process = subprocess.Popen(
            [*command, self.segment.name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> str:
        """What it said, once nobody is left who could say more: all have its standard error."""
        return self.process.communicate(timeout=60)[1]

    def assert_nothing_is_left(self) -> None:
        assert not self.weights.exists()
        assert not self.segment.exists()


@pytest.fixture(autouse=True)
def _only_linux() -> Iterator[None]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("finds processes in /proc")
    yield


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)"])
def test_what_a_killed_driver_leaves_is_ended_and_freed(tmp_path: Path, ending: str) -> None:
    driver = _Driver(tmp_path, ending)
    said = driver.end()
    driver.assert_nothing_is_left()
    assert f"serl-run (process {driver.process.pid}) ended without a word" in said
    assert "3 processes that it left are ended, its weights in shared memory are freed" in said
    assert "There is no checkpoint to resume from" in said
    assert "ended without a word" in (tmp_path / "logs" / "driver.log").read_text()


def test_a_driver_that_does_not_come_to_its_end_is_killed(tmp_path: Path) -> None:
    driver = _Driver(tmp_path, "stop.before_ending = [lambda: time.sleep(1000)]; stop.end_at_once(3)")
    said = driver.end()
    assert driver.process.returncode == -signal.SIGKILL
    assert "did not end within" in said
    driver.assert_nothing_is_left()


def test_of_a_driver_that_ends_in_order_the_guardian_says_nothing(tmp_path: Path) -> None:
    driver = _Driver(tmp_path, "stop.kill_descendants(); stop.before_ending = []; sys.exit(5)")
    assert (driver.end(), driver.process.returncode) == ("", 5)
    assert not driver.segment.exists()
    # The lock has gone with the driver: whoever starts next removes it.
    assert driver.weights.exists()
    for file in driver.weights.iterdir():
        file.unlink()
    driver.weights.rmdir()
    assert not (tmp_path / "logs" / "driver.log").exists()


def test_neither_a_signal_to_all_nor_its_own_end_keeps_the_guardian_from_its_work(tmp_path: Path) -> None:
    driver = _Driver(tmp_path, "time.sleep(1000)")
    assert driver.process.stdout is not None and driver.process.stdout.readline() == "started\n"
    children = Path(f"/proc/{driver.process.pid}/task/{driver.process.pid}/children").read_text().split()
    (guardian,) = [pid for pid in children if "guardian" in Path(f"/proc/{pid}/cmdline").read_text()]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(int(guardian), number)
    time.sleep(0.5)
    driver.process.kill()
    driver.end()
    driver.assert_nothing_is_left()

"""When a process has ended."""

from __future__ import annotations

import subprocess
import sys
import time

from serl.run.processes import descendants, started

# The first thread ends, another one goes on and holds what the process holds.
_WITHOUT_FIRST_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("begins", flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[__import__("platform").machine()], 0)
"""


def test_a_process_has_ended_when_its_last_thread_has() -> None:
    process = subprocess.Popen([sys.executable, "-c", _WITHOUT_FIRST_THREAD], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"begins\n"
        began = started(process.pid)
        time.sleep(1.0)
        assert began and started(process.pid) == began
        assert process.pid in descendants()
        process.kill()
        deadline = time.monotonic() + 60.0
        while started(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.pid not in descendants()
    finally:
        process.kill()
        process.wait()

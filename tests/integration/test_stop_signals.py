"""What signals ask of a run, and what they do to the processes below it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_second_interrupt_ends_the_process_at_once():
    code = textwrap.dedent("""
        import os, signal, subprocess, time
        from serl.run.stop import stop_on_signal
        stop = stop_on_signal()
        # A child in a session of its own, and one below it whose parent is gone.
        child = subprocess.Popen(["setsid", "sh", "-c", "sleep 1000 & exec sleep 1000"])
        subprocess.run(["sh", "-c", "sleep 1000 & echo $!"])
        stop.before_ending.append(lambda: print("tidied up", flush=True))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        print(stop.wait(10), child.pid, flush=True)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60.0)
        print("never")
    """)
    # What lives on would keep the pipe open, and this call waiting.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 128 + signal.SIGINT
    orphan, said, tidied = run.stdout.splitlines()
    assert (said.split()[0], tidied) == ("True", "tidied up")
    assert "once more to stop at once" in run.stderr
    for pid in (int(orphan), int(said.split()[1])):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_signal_is_heard_while_the_main_thread_is_in_a_call_and_another_thread_gets_it():
    code = textwrap.dedent("""
        import ctypes, os, signal, threading
        threading.Thread(target=ctypes.CDLL(None).sleep, args=(1000,), daemon=True).start()
        from serl.run.stop import stop_on_signal
        stop = stop_on_signal()
        stop.nothing_to_save = True
        (other,) = [thread for thread in threading.enumerate() if thread.name.startswith("Thread-")]
        signal.pthread_kill(other.ident, signal.SIGTERM)
        ctypes.CDLL(None).sleep(1000)
    """)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM before there was anything to save" in run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_asks_for_a_stop_and_ends_none_of_them(number: signal.Signals):
    code = textwrap.dedent(f"""
        import os, subprocess
        from serl.run.stop import stop_on_signal
        stop = stop_on_signal()
        child = subprocess.Popen(["sleep", "1000"])
        os.killpg(0, {int(number)})
        print(stop.wait(10), child.poll())
        child.kill()
    """)
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, start_new_session=True
    )
    assert (run.returncode, run.stdout) == (0, "True None\n")


def test_what_nohup_ignores_is_ignored():
    code = textwrap.dedent("""
        import os, signal
        from serl.run.stop import stop_on_signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop = stop_on_signal()
        os.kill(os.getpid(), signal.SIGHUP)
        print(stop.wait(1))
    """)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (run.returncode, run.stdout) == (0, "False\n")

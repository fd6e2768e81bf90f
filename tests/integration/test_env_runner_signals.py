"""What environments and agents hear of signals that the process of their env runner inherited blocked."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Runs in an env runner, below a parent that blocks what `serl-run` blocks.
_BELOW_SERL_RUN = """
import multiprocessing, os, signal, subprocess, sys, tempfile, time
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
from runner_helpers import runner_config
from serl.rollout.env_runner import SERLEnvRunner

runner = SERLEnvRunner(config=runner_config(Path(tempfile.mkdtemp())), worker_index=1)

def sleeper():
    return subprocess.Popen(["sleep", "60"])

def code_of_ended(process):
    process.terminate()
    return process.wait(20)

def code_of_ended_fork():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    time.sleep(0.5)
    process.terminate()
    process.join(20)
    return process.exitcode
"""


def in_an_env_runner(code: str) -> list[str]:
    """The lines that ``code`` prints."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    run = subprocess.run(
        [sys.executable, "-c", _BELOW_SERL_RUN + textwrap.dedent(code) + "\nos._exit(0)"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_what_an_environment_starts_can_be_terminated_from_each_thread_that_runs_it():
    said = in_an_env_runner("""
        import asyncio
        async def on_the_loop():
            return code_of_ended(sleeper())
        print(code_of_ended(sleeper()))
        print(runner._env_threads.submit(lambda: code_of_ended(sleeper())).result(60))
        print(asyncio.run_coroutine_threadsafe(on_the_loop(), runner._loop).result(60))
        print(runner._env_threads.submit(code_of_ended_fork).result(60), flush=True)
    """)
    assert said == ["-15", "-15", "-15", "-15"]


def test_an_env_runner_lives_on_when_all_processes_get_a_signal():
    said = in_an_env_runner("""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        time.sleep(0.5)
        print(runner.ping(), flush=True)
    """)
    assert said == ["pong"]


def test_an_agents_program_hears_the_signals_of_its_own():
    said = in_an_env_runner("""
        import asyncio
        from envs.agent.child import Call
        from serl.rollout.agent_processes import AgentProcesses
        call = Call(function="", arguments=[], offered={}, standard_input="", environment={}, seed=1,
                    command=["bash", "-c", "timeout 1 sleep 30; echo $?"], timeout_s=20.0,
                    max_output_bytes=1000)
        async def play():
            processes = AgentProcesses((), 60.0)
            async with await processes.start_run(call) as run:
                outcome = await run.outcome()
                await run.finish()
            processes.close()
            return outcome.stdout
        print(asyncio.run_coroutine_threadsafe(play(), runner._loop).result(60), flush=True)
    """)
    assert said[0] == "124"

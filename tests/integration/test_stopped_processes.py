"""Processes that are stopped for a while and then go on, as by `scontrol suspend` or `docker pause`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from serl import watched_actors
from serl.config import ExperimentConfig, ModelSection, ServingSection
from serl.serving.names import ServingNames
from serl.watched_actors import ServingLostError, WatchedActors

ROOT = Path(__file__).resolve().parents[2]

# An answer is there once the actor has run for half a second.
_MONITOR = """
import threading, time
import serl.heartbeat as heartbeat

ran = [0]

def run():
    while True:
        time.sleep(0.02)
        ran[0] += 1

threading.Thread(target=run, daemon=True).start()
heartbeat.ray.wait = lambda answers, timeout: (answers, []) if ran[0] - answers[0] > 25 else ([], answers)
heartbeat.ray.get = lambda answer, timeout: True
ended = []
asked = threading.Event()

def ping():
    if ran[0] > 150:
        print("asked", flush=True)
        asked.set()
    return ran[0]

monitor = heartbeat.HeartbeatMonitor(timeout_s=3.0, start_timeout_s=3.0)
monitor.watch("env_runners", "env runner 1", ping, lambda: ended.append(1))
asked.wait(60.0)
time.sleep(5.0)
print(f"ended {len(ended)}", flush=True)
"""

# Once it is not stopped any more, the event loop is held for another second.
_ENV_RUNNER = """
import os, tempfile, time
from pathlib import Path
from runner_helpers import runner_config
from serl.rollout import env_runner

env_runner._LOOP_ANSWER_TIMEOUT_S = 3.0
runner = env_runner.SERLEnvRunner(config=runner_config(Path(tempfile.mkdtemp())), worker_index=1)

def hold():
    print("asked", flush=True)
    for _ in range(30):
        time.sleep(0.05)

runner._loop.call_soon_threadsafe(hold)
report = runner.exchange([], wait_s=0.0)
print(f"unfit {report.unfit!r}, error {report.error!r}", flush=True)
os._exit(0)
"""


def said_after_a_stop(code: str, stopped_s: float) -> str:
    """What a process says that is stopped soon after it has said ``asked`` for the first time."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(stopped_s)
        process.send_signal(signal.SIGCONT)
        return process.communicate(timeout=60.0)[0].splitlines()[-1]


def test_actors_that_were_stopped_with_the_monitor_are_not_taken_for_silent():
    assert said_after_a_stop(_MONITOR, stopped_s=5.0) == "ended 0"


def test_an_env_runner_that_was_stopped_answers_afterwards():
    assert said_after_a_stop(_ENV_RUNNER, stopped_s=5.0) == "unfit '', error ''"


def test_a_run_that_was_stopped_for_an_hour_looks_for_its_replicas_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(watched_actors, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(watched_actors, "serve_controller", MagicMock())
    monkeypatch.setattr(watched_actors, "HeartbeatMonitor", MagicMock())
    monkeypatch.setattr(watched_actors, "Redeployer", MagicMock())
    experiment = ExperimentConfig(
        name="stopped", model=ModelSection(path="p"), serving=ServingSection(start_timeout_s=600.0)
    )
    actors = WatchedActors(experiment, ServingNames("serl-a", "policy", "store", "serl"))
    clock[0] += 3600.0
    actors.require_serving()
    for _ in range(59):
        clock[0] += 10.0
        actors.require_serving()
    clock[0] += 10.0
    with pytest.raises(ServingLostError, match="no policy replica has served for 610 s"):
        actors.require_serving()

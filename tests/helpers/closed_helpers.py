"""Whether a run on its own cluster is closed: where its processes listen, and whom they answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from serl.run.processes import descendants

# Parts of the command lines of what has ports to be closed.
_LISTENING = (
    "serl.run.cli",
    "gcs_server",
    "raylet/raylet",
    "ray::RuntimeEnvAgent",
    "ray::DashboardAgent",
    "dashboard.py",
    "ray::ServeController",
    "ray::ServeReplica",
    "ray::SERLEnvRunner",
    "ray::SERLLearner",
)
_LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
_JOIN = """
import sys, ray
from serl.private.ray_core import loopback_is_the_nodes_address
with loopback_is_the_nodes_address():  # else it would look for the cluster at another address
    ray.init(address=sys.argv[1])
print("joined")
"""


def check_that_run_is_closed(pid: int, run_dir: Path) -> None:
    """``pid`` is a `serl-run` with all its actors, on a cluster of its own with a dashboard."""
    commands: list[str] = []
    listening: list[str] = []
    for each in (pid, *descendants(pid)):
        with suppress(psutil.NoSuchProcess):  # idle workers end
            process = psutil.Process(each)
            commands.append(" ".join(process.cmdline()))
            sockets = [
                found for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN
            ]
            listening += [commands[-1]] if sockets else []
            outside = [found.laddr for found in sockets if found.laddr.ip not in _LOOPBACK]
            assert not outside, f"{commands[-1][:200]} listens at {outside}"
    silent = [part for part in _LISTENING if not any(part in command for command in listening)]
    assert not silent, f"{silent}: not among {[command[:100] for command in listening]}"

    (raylet,) = [command for command in commands if "raylet/raylet " in command]
    log = (run_dir / "logs" / "driver.log").read_text()
    file = _found(r"the cluster's token is in (\S+)", log)
    token = Path(file).read_text()
    assert len(token) == 64
    _check_that_strangers_are_refused(_found(r"-Dray.address=(\S+)", raylet), file)
    _check_that_the_dashboard_asks_for_it(_found(r", dashboard (\S+)", log), token)
    session = Path(_found(r"--session_dir=(\S+)", raylet))
    for text in (*commands, *(each.read_text(errors="replace") for each in _files(run_dir, session))):
        assert token not in text, text[:1000]


def _check_that_strangers_are_refused(address: str, file: str) -> None:
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        assert "InvalidAuthToken" in _join(address, token)
    assert "joined" in _join(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": file})


def _join(address: str, token: dict[str, str]) -> str:
    """What a process says that joins the cluster at ``address`` with the variables in ``token``."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    joined = subprocess.run(
        [sys.executable, "-c", _JOIN, address],
        env=others | {"RAY_NUM_REDIS_GET_RETRIES": "2"} | token,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return joined.stdout


def _check_that_the_dashboard_asks_for_it(address: str, token: str) -> None:
    page = f"http://{address}/nodes?view=summary"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(page, timeout=30)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(_with_token(page, "0" * 64), timeout=30)
    with urllib.request.urlopen(_with_token(page, token), timeout=30) as answer:
        assert answer.status == 200


def _with_token(page: str, token: str) -> urllib.request.Request:
    return urllib.request.Request(page, headers={"Authorization": f"Bearer {token}"})


def _found(pattern: str, text: str) -> str:
    return re.findall(pattern, text)[0]


def _files(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*") if file.is_file()]

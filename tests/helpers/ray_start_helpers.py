"""A cluster by `ray start`, as somebody else's that a run joins."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serl.run.processes import descendants

RAY = Path(sys.executable).with_name("ray")


def environment(**variables: str) -> dict[str, str]:
    """Without what this process was told of Ray, and without GPUs."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return ours | {"CUDA_VISIBLE_DEVICES": ""} | variables


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def ray_head(*options: str, **variables: str) -> Iterator[tuple[str, int]]:
    """Its address and its process; SIGTERM does not reach its workers, as the README says."""
    # The paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    command = ["env", "--block-signal=TERM,HUP", str(RAY), "start", "--head", "--block"]
    common = [
        "--include-dashboard=false",
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={folder}",
    ]
    with (folder / "console").open("w") as console:
        head = subprocess.Popen(
            [*command, *common, *options],
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment(**variables),
        )
    try:
        deadline = time.monotonic() + 300.0
        while not (file := folder / "ray_current_cluster").exists() or not file.read_text():
            assert head.poll() is None and time.monotonic() < deadline, (folder / "console").read_text()
            time.sleep(0.2)
        yield file.read_text().strip(), head.pid
    finally:
        for pid in descendants(head.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.kill()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)

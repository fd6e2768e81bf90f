"""How a cluster is started that Ray does not bring up the first time; `tests/system` has real ones."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
import ray

from serl.run import processes
from serl.run.closed_cluster import start_closed_cluster


def test_of_a_start_that_failed_nothing_is_left_when_ray_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = subprocess.Popen(["sleep", "60"])
    started: list[subprocess.Popen[bytes]] = []

    def init(**options: Any) -> str:
        if not started:
            started.append(subprocess.Popen(["sleep", "60"]))
            raise RuntimeError("The current node timed out during startup.")
        return "the second cluster"

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    try:
        assert start_closed_cluster() == "the second cluster"
        assert not processes.started(started[0].pid) and processes.started(others.pid)
    finally:
        others.kill()
        others.wait()

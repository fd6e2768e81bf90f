"""What is noticed while Ray starts; `tests/system` has what is noticed of real clusters afterwards."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serl.run import cluster_watch
from serl.run.cluster_watch import watched_start


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "_TICK_S", 0.1)
    monkeypatch.setattr(cluster_watch, "_SERVERS_MISSING_S", 0.5)
    monkeypatch.setattr(cluster_watch, "_START_TIMEOUT_S", 3.0)


@contextmanager
def server(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose program is called ``name``, as one of Ray's is."""
    program = shutil.copy(shutil.which("sleep") or "", folder / name)
    process = subprocess.Popen([program, "60"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_that_ends_while_ray_starts_is_told(tmp_path: Path) -> None:
    lost: list[str] = []
    told = threading.Event()
    with (
        server(tmp_path, "raylet"),
        server(tmp_path, "gcs_server") as gcs,
        watched_start(lambda what: (lost.append(what), told.set())),
    ):
        assert not told.wait(1.0)
        gcs.kill()
        assert told.wait(2.0)
    assert lost == [f"Ray's GCS (process {gcs.pid}) ended while Ray was starting"]


def test_a_server_that_is_started_once_more_is_not_missed(tmp_path: Path) -> None:
    lost: list[str] = []
    with server(tmp_path, "gcs_server") as first, watched_start(lost.append):
        assert not threading.Event().wait(0.5)
        first.kill()
        with server(tmp_path, "raylet"):
            assert not threading.Event().wait(1.5)
    assert lost == []


def test_a_start_that_does_not_end_is_told(tmp_path: Path) -> None:
    lost: list[str] = []
    told = threading.Event()
    with watched_start(lambda what: (lost.append(what), told.set())):
        assert told.wait(20.0)
    assert lost == ["Ray did not start within 3 s"]

"""One writer a run directory: who is told what, and when a dead one's place is taken."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from serl.durable_files import write_json
from serl.run import writer_lock
from serl.run.writer_lock import RECORD, RunDirInUseError, Writer, WriterLock, read_writer

_ROOT = Path(__file__).parents[2]


@contextmanager
def held_by_another_process(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    code = (
        "import sys, pathlib; from serl.run.writer_lock import WriterLock\n"
        "lock = WriterLock.acquire(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run_dir)]
    holder = subprocess.Popen(
        command, cwd=_ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate(timeout=60)


def written_elsewhere(run_dir: Path, seconds_ago: float) -> Writer:
    """What a process on another machine left when it was killed."""
    last = replace(
        Writer.this_process(), host="node7", pid=4711, pid_space="elsewhere", beat=time.time() - seconds_ago
    )
    write_json(run_dir / RECORD, asdict(last))
    return last


def test_a_second_writer_is_told_who_holds_the_run(tmp_path: Path):
    with held_by_another_process(tmp_path) as holder:
        with pytest.raises(RunDirInUseError) as refused:
            WriterLock.acquire(tmp_path)
        assert f"process {holder.pid} on {os.uname().nodename}, since 20" in str(refused.value)
        assert read_writer(tmp_path) is not None


def test_the_place_of_a_writer_that_was_killed_here_is_taken_at_once(tmp_path: Path):
    with held_by_another_process(tmp_path) as holder:
        holder.kill()
        holder.wait(timeout=60)
        said: list[str] = []
        lock = WriterLock.acquire(tmp_path, said.append)
    writer = read_writer(tmp_path)
    assert writer is not None and writer.pid == os.getpid() and said == []
    lock.release()
    assert read_writer(tmp_path) is None


def test_a_process_that_lives_is_seen_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    with held_by_another_process(tmp_path) as holder:
        monkeypatch.setattr(writer_lock.fcntl, "flock", no_locks)
        with pytest.raises(RunDirInUseError, match=f"process {holder.pid} "):
            WriterLock.acquire(tmp_path)


def test_a_process_id_that_is_used_again_holds_nothing(tmp_path: Path):
    """As in a container that starts again: the writer before had the same id as this one."""
    write_json(tmp_path / RECORD, asdict(replace(Writer.this_process(), started="1")))
    WriterLock.acquire(tmp_path).release()


def test_a_writer_elsewhere_without_a_pulse_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_lock, "DEAD_AFTER_S", 2.0)
    monkeypatch.setattr(writer_lock, "_SETTLE_S", 0.1)
    written_elsewhere(tmp_path, seconds_ago=1.0)
    said: list[str] = []
    started = time.monotonic()
    lock = WriterLock.acquire(tmp_path, said.append)
    assert time.monotonic() - started >= 2.0
    assert len(said) == 1 and "process 4711 on node7" in said[0] and "for 2 s" in said[0]
    lock.release()


def test_a_writer_elsewhere_with_a_pulse_lives_however_wrong_its_clock_is(tmp_path: Path):
    last = written_elsewhere(tmp_path, seconds_ago=1e6)
    beat = threading.Timer(
        1.5, lambda: write_json(tmp_path / RECORD, asdict(replace(last, beat=last.beat + 10)))
    )
    beat.start()
    with pytest.raises(RunDirInUseError, match="process 4711 on node7"):
        WriterLock.acquire(tmp_path, lambda text: None)
    beat.join()


def test_a_writer_whose_place_was_taken_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_lock, "BEAT_INTERVAL_S", 0.1)
    lock = WriterLock.acquire(tmp_path)
    why: list[str] = []
    told = threading.Event()
    lock.on_lost = lambda text: (why.append(text), told.set())
    successor = written_elsewhere(tmp_path, seconds_ago=0.0)
    assert told.wait(timeout=60)
    assert "taken over by process 4711 on node7" in why[0]
    lock.release()
    assert read_writer(tmp_path) == successor, "a successor's record was removed"


def test_whoever_asks_after_the_place_was_taken_hears_of_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_lock, "BEAT_INTERVAL_S", 0.1)
    lock = WriterLock.acquire(tmp_path)
    written_elsewhere(tmp_path, seconds_ago=0.0)
    for _ in range(2):
        told = threading.Event()
        lock.on_lost = lambda text, told=told: told.set()
        assert told.wait(timeout=20)
    lock.release()


def test_of_two_that_begin_at_once_without_shared_locks_the_first_to_write_soon_hears_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_lock, "BEAT_INTERVAL_S", 3600.0)
    monkeypatch.setattr(writer_lock, "_SETTLE_S", 0.5)
    lock = WriterLock.acquire(tmp_path)
    told = threading.Event()
    lock.on_lost = lambda text: told.set()
    written_elsewhere(tmp_path, seconds_ago=0.0)
    assert told.wait(timeout=20)
    lock.release()


def test_a_writer_whose_successor_has_ended_hears_of_it_and_writes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_lock, "BEAT_INTERVAL_S", 0.1)
    lock = WriterLock.acquire(tmp_path)
    why: list[str] = []
    told = threading.Event()
    lock.on_lost = lambda text: (why.append(text), told.set())
    (tmp_path / RECORD).unlink()
    assert told.wait(timeout=20)
    assert "taken over by another process, which has ended since" in why[0]
    assert read_writer(tmp_path) is None
    lock.release()


def test_a_file_system_that_is_away_for_a_while_was_taken_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_lock, "BEAT_INTERVAL_S", 0.1)
    monkeypatch.setattr(writer_lock, "_SETTLE_S", 0.1)
    folder = tmp_path / "run"
    folder.mkdir()
    lock = WriterLock.acquire(folder)
    why: list[str] = []
    lock.on_lost = why.append
    folder.rename(tmp_path / "away")
    time.sleep(1.0)
    (tmp_path / "away").rename(folder)
    first = read_writer(folder)
    deadline = time.monotonic() + 60
    while read_writer(folder) == first:
        assert time.monotonic() < deadline, "no heartbeat"
        time.sleep(0.05)
    assert first is not None and why == []
    lock.release()


def test_a_heartbeat_changes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_lock, "BEAT_INTERVAL_S", 0.1)
    lock = WriterLock.acquire(tmp_path)
    first = read_writer(tmp_path)
    deadline = time.monotonic() + 60
    while read_writer(tmp_path) == first:
        assert time.monotonic() < deadline, "no heartbeat"
        time.sleep(0.05)
    lock.release()

"""Checkpoint folders: what makes one sound, which one a run resumes from, and what a failed save leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_helpers import WEIGHTS, write_checkpoint

from serl.algorithm_state import CheckpointError
from serl.durable_files import digest_of, write_atomically, write_hashed
from serl.manifest import require_free_space, verify_checkpoint
from serl.run.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    find_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
)
from serl.run.resume import checkpoint_to_resume


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_was_hashed_while_it_was_written_is_what_the_file_holds(tmp_path: Path):
    digest = write_hashed(tmp_path / "file", b"abc")
    assert digest.size == 3 and digest.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert digest_of(tmp_path / "file") == digest


@pytest.mark.parametrize("name", [WEIGHTS, "algorithm.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_any_change_of_any_file_is_found(tmp_path: Path, name: str, how: str):
    folder = write_checkpoint(tmp_path, 1)
    verify_checkpoint(folder)
    file = folder / name
    if how == "flipped":
        flip_a_bit(file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    else:
        file.unlink()
    with pytest.raises(CheckpointError) as found:
        verify_checkpoint(folder)
    assert str(folder) in str(found.value)
    # A manifest that was changed may name a file that is not there.
    assert name in str(found.value) or (name, how) == ("manifest.json", "flipped")


def test_a_checkpoint_of_an_older_version_has_no_manifest_and_is_taken_as_it_is(tmp_path: Path):
    folder = checkpoint_path(tmp_path / "checkpoints", 3)
    folder.mkdir(parents=True)
    (folder / "algorithm.json").write_text('{"weights_seq_no": 3}')
    assert find_checkpoint(tmp_path) == (folder, [])


def test_a_damaged_newest_checkpoint_is_named_and_kept_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before, newest = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    flip_a_bit(newest / WEIGHTS)
    assert checkpoint_to_resume(tmp_path, start=False) == before
    said = capsys.readouterr().out
    assert f"{newest} is damaged: {WEIGHTS} holds other bytes than were written" in said
    assert "kept as iteration_000002.damaged, the run resumes from iteration_000001" in said
    assert (newest.with_name("iteration_000002.damaged") / WEIGHTS).exists()
    # Its name is free again, and what is damaged does not count among those that are kept.
    write_checkpoint(tmp_path, 2)
    remove_old_checkpoints(tmp_path / "checkpoints", keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["iteration_000001", "iteration_000002", "iteration_000002.damaged"]


def test_a_run_with_nothing_but_damaged_checkpoints_does_not_start_anew(tmp_path: Path):
    folder = write_checkpoint(tmp_path, 1)
    (folder / WEIGHTS).unlink()
    for start in (True, False):
        with pytest.raises(CheckpointError, match=f"{WEIGHTS} cannot be read: No such file"):
            checkpoint_to_resume(tmp_path, start)
    assert folder.exists()


def test_a_run_that_never_saved_anything_may_start(tmp_path: Path):
    (tmp_path / "checkpoints" / "iteration_000001.partial").mkdir(parents=True)
    assert checkpoint_to_resume(tmp_path, start=True) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint_to_resume(tmp_path, start=False)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    (tmp_path / "checkpoints").mkdir()
    with CheckpointWriter(tmp_path / "checkpoints", keep=2, timeout_s=30.0) as writer:
        yield writer


def moved_from(source: Path) -> Callable[[Path], Callable[[], object]]:
    """To be saved: the folder ``source``, under the name that it is given."""
    return lambda folder: lambda: shutil.move(source, folder)


def test_a_checkpoint_is_seen_when_it_is_written_and_the_newest_are_kept(
    tmp_path: Path, writer: CheckpointWriter
):
    may_end = threading.Event()
    for iteration in (1, 2, 3):
        source = write_checkpoint(tmp_path / "elsewhere", iteration)
        writer.start(iteration, moved_from(source))
    writer.wait()
    before = ["iteration_000002", "iteration_000003"]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == before
    source = write_checkpoint(tmp_path / "elsewhere", 4)

    def copy(folder: Path) -> Callable[[], None]:
        folder.mkdir()

        def write() -> None:
            assert may_end.wait(30.0)
            folder.rmdir()
            source.rename(folder)

        return write

    writer.take_metrics()
    writer.start(4, copy)
    assert writer.take_metrics().keys() == {"checkpoint/seconds_paused"}
    assert (tmp_path / "checkpoints" / "iteration_000004.partial").is_dir()
    found, damaged = find_checkpoint(tmp_path)
    assert found is not None and found.name == "iteration_000003" and damaged == []
    may_end.set()
    writer.wait()
    assert writer.take_metrics().keys() == {"checkpoint/seconds_written"}
    assert writer.take_metrics() == {}
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        before[1],
        "iteration_000004",
    ]


def fill_the_disk(folder: Path) -> None:
    (folder / "half").write_text("of it")
    raise OSError(28, "No space left on device")


def copy_then_fill_the_disk(folder: Path) -> Callable[[], None]:
    folder.mkdir()
    return lambda: fill_the_disk(folder)


def copy_onto_a_full_disk(folder: Path) -> Callable[[], None]:
    folder.mkdir()
    fill_the_disk(folder)
    raise AssertionError


def test_what_cannot_be_written_is_told_afterwards_and_leaves_earlier_ones(
    tmp_path: Path, writer: CheckpointWriter
):
    kept = write_checkpoint(tmp_path, 1)
    tellers: list[Callable[[], object]] = [
        writer.wait,
        lambda: writer.start(3, moved_from(write_checkpoint(tmp_path / "elsewhere", 3))),
    ]
    for tell in tellers:
        writer.start(2, copy_then_fill_the_disk)
        with pytest.raises(CheckpointError, match="iteration_000002 cannot be written .*No space left"):
            tell()
        assert list((tmp_path / "checkpoints").iterdir()) == [kept]
    with pytest.raises(CheckpointError, match="iteration_000002 cannot be written .*No space left"):
        writer.start(2, copy_onto_a_full_disk)
    assert list((tmp_path / "checkpoints").iterdir()) == [kept]
    verify_checkpoint(kept)
    # Once told it is past, and the next one is written.
    writer.start(3, moved_from(tmp_path / "elsewhere" / "checkpoints" / "iteration_000003"))
    writer.wait()
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


def test_an_iteration_that_ends_tells_of_a_checkpoint_that_failed_before(
    tmp_path: Path, writer: CheckpointWriter
):
    def fail(folder: Path) -> Callable[[], None]:
        def write() -> None:
            raise RuntimeError("learner 1 died")

        return write

    writer.start(1, fail)
    deadline = time.monotonic() + 30.0
    with pytest.raises(RuntimeError, match="learner 1 died"):
        while time.monotonic() < deadline:
            writer.take_metrics()
    writer.start(2, fail)
    writer.abandon()
    writer.wait()


def test_a_checkpoint_on_a_disk_that_hangs_is_not_waited_for_for_ever(tmp_path: Path):
    kept, answers = write_checkpoint(tmp_path, 1), threading.Event()
    started, late = time.monotonic(), write_checkpoint(tmp_path / "elsewhere", 2)

    def copy(folder: Path) -> Callable[[], object]:
        return lambda: answers.wait(30.0) and late.rename(folder)

    with CheckpointWriter(tmp_path / "checkpoints", keep=2, timeout_s=0.2) as writer:
        writer.start(2, copy)
        (writing,) = (thread for thread in threading.enumerate() if thread.name == "checkpoint")
        with pytest.raises(CheckpointError, match=r"not complete after checkpoint\.timeout_s = 0\.2 s"):
            writer.wait()
        writer.start(3, lambda folder: answers.wait)
    assert time.monotonic() - started < 10.0
    verify_checkpoint(kept)
    answers.set()
    writing.join(30.0)
    assert not writing.is_alive()
    assert list_checkpoints(tmp_path / "checkpoints") == [kept]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require_free_space(tmp_path, 0)
    usage = namedtuple("usage", "total used free")(10**12, 0, 500 * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    require_free_space(tmp_path, 400 * 2**20)
    with pytest.raises(CheckpointError, match="has 500 MiB free, a checkpoint needs 564 MiB"):
        require_free_space(tmp_path, 500 * 2**20)


def test_an_atomic_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "algorithm.json"
    write_atomically(file, b'{"a": 1}')

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b'{"a": 2}')
    assert json.loads(file.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [file]


def test_two_processes_with_one_id_may_write_a_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in two containers: the second one writes all of it before the first one's file gets its name."""
    file = tmp_path / "writer.json"

    def then_another_process(path: Path, data: bytes) -> None:
        monkeypatch.undo()
        write_hashed(path, data)
        write_atomically(file, b"the second's")

    monkeypatch.setattr("serl.durable_files.write_hashed", then_another_process)
    write_atomically(file, b"the first's")
    assert file.read_bytes() == b"the first's" and list(tmp_path.iterdir()) == [file]

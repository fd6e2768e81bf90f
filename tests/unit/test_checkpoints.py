"""Checkpoint folders: what makes one sound, which one a run resumes from, and what a failed save leaves."""

from __future__ import annotations

import hashlib
import json
from collections import namedtuple
from pathlib import Path

import pytest
from run_helpers import WEIGHTS, write_checkpoint

from serl.algorithm_state import CheckpointError
from serl.durable_files import digest_of, write_atomically, write_hashed
from serl.manifest import require_free_space, verify_checkpoint
from serl.run.checkpoint import (
    checkpoint_path,
    find_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
    save_checkpoint,
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


def test_a_save_that_fails_removes_its_own_folder_and_no_other(tmp_path: Path):
    kept = write_checkpoint(tmp_path, 1)

    def fill_the_disk(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "checkpoints", 2, fill_the_disk, keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == [kept]
    verify_checkpoint(kept)


def test_a_save_keeps_the_newest(tmp_path: Path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for iteration in (1, 2, 3):
        source = write_checkpoint(tmp_path / "elsewhere", iteration)

        def move(folder: Path, source: Path = source) -> None:
            source.rename(folder)

        save_checkpoint(checkpoints, iteration, move, keep=2)
    assert [path.name for path in list_checkpoints(checkpoints)] == ["iteration_000002", "iteration_000003"]


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

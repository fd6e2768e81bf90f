"""Weights for another host: a second host is a folder of its own in the place of `/dev/shm`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serl.serving import fetch, weights_folder
from serl.serving.fetch import WeightsGoneError, on_this_host, read_piece
from serl.serving.weights_folder import claim_folder, host_id, join_folder, release_folder

APPLICATION = "serl-fetched"
CONTENT = bytes(range(256)) * 10


@pytest.fixture
def update(tmp_path: Path) -> dict[str, Any]:
    written = tmp_path / "of_the_learner"
    written.write_bytes(CONTENT)
    return {
        "kind": "shared_memory",
        "weights_seq_no": 3,
        "path": str(written),
        "file_bytes": len(CONTENT),
        "host": "another host",
        "node_id": "its node",
    }


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the pieces that were read, without Ray in between."""
    second_host, found = tmp_path / "shm", list[int]()
    second_host.mkdir()

    def pieces(update: dict[str, Any], deadline: float) -> Iterator[Any]:
        for offset in range(0, update["file_bytes"], 1000):
            piece = read_piece(update["path"], offset, min(1000, update["file_bytes"] - offset))
            found.append(len(piece))
            yield piece

    monkeypatch.setattr(weights_folder, "shared_memory_root", lambda: second_host)
    monkeypatch.setattr(fetch, "pieces", pieces)
    claim_folder(APPLICATION)
    yield found
    release_folder(APPLICATION)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_replica_on_the_learners_host_reads_what_the_learner_wrote(
    update: dict[str, Any], reads: list[int]
) -> None:
    update |= {"host": host_id()}
    with on_this_host(update, "first", APPLICATION, 10.0) as found:
        assert found is update
    assert reads == []


def test_another_host_fetches_one_copy_for_all_its_replicas(update: dict[str, Any], reads: list[int]) -> None:
    folder = join_folder(APPLICATION)
    for _ in range(2):
        with on_this_host(update, "first", APPLICATION, 10.0) as found:
            assert Path(found["path"]).read_bytes() == CONTENT
            assert (found["path"], found["host"]) == (str(folder / "first.copy"), host_id())
    assert reads == [1000, 1000, 560]
    with on_this_host(update, "second", APPLICATION, 10.0):
        assert names(folder) == ["fetching", "lock", "second.copy"]


def test_a_copy_that_is_being_loaded_is_freed_later(update: dict[str, Any], reads: list[int]) -> None:
    folder = join_folder(APPLICATION)
    with on_this_host(update, "first", APPLICATION, 10.0) as loading:
        with on_this_host(update, "second", APPLICATION, 10.0):
            assert names(folder) == ["fetching", "first.copy", "lock", "second.copy"]
        assert Path(loading["path"]).read_bytes() == CONTENT
    with on_this_host(update, "third", APPLICATION, 10.0):
        assert names(folder) == ["fetching", "lock", "third.copy"]


def test_a_fetch_that_fails_leaves_nothing_and_is_tried_anew(
    update: dict[str, Any], reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_in_the_middle(update: dict[str, Any], deadline: float) -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise WeightsGoneError("newer weights are there")

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "pieces", end_in_the_middle)
        with (
            pytest.raises(WeightsGoneError, match="newer weights"),
            on_this_host(update, "first", APPLICATION, 1.0),
        ):
            pass
    assert names(join_folder(APPLICATION)) == ["fetching", "lock"]
    with on_this_host(update, "first", APPLICATION, 10.0) as found:
        assert Path(found["path"]).read_bytes() == CONTENT


def test_weights_that_are_gone_or_stay_on_their_host_are_named(
    update: dict[str, Any], reads: list[int]
) -> None:
    stays = update | {"node_id": None}
    with (
        pytest.raises(WeightsGoneError, match="weight_transfer=shared_memory needs learner and replicas"),
        on_this_host(stays, "first", APPLICATION, 1.0),
    ):
        pass
    gone = update | {"host": host_id(), "path": "/nowhere/00000003.safetensors"}
    with (
        pytest.raises(WeightsGoneError, match="weights 3 are gone: no /nowhere"),
        on_this_host(gone, "first", APPLICATION, 1.0),
    ):
        pass


def test_one_replica_does_not_wait_for_another_for_ever(update: dict[str, Any], reads: list[int]) -> None:
    folder = join_folder(APPLICATION)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder / "fetching")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        with (
            pytest.raises(TimeoutError, match="another replica of this host to fetch weights"),
            on_this_host(update, "first", APPLICATION, 0.1),
        ):
            pass

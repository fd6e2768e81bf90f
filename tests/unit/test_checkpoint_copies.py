"""Copies of checkpoints at a URI: whole, the newest, and what a run without its disk is resumed from."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
from run_helpers import WEIGHTS, write_checkpoint

from serl.algorithm_state import CheckpointError
from serl.config.load import load_experiment
from serl.config.run import CheckpointSection
from serl.manifest import verify_checkpoint
from serl.run.checkpoint import find_checkpoint, list_checkpoints
from serl.run.checkpoint_copies import CheckpointCopies, checkpoint_writer
from serl.run.cli import main
from serl.run.resume import checkpoint_to_resume
from serl.run_folder import config_yaml

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"


@pytest.fixture(params=["memory", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/copies/"


def run_dir(folder: Path) -> Path:
    (folder / "run" / "checkpoints").mkdir(parents=True)
    return folder / "run"


def test_copies_are_made_at_a_uri() -> None:
    with pytest.raises(ValueError, match="must be a URI such as s3://bucket/runs"):
        CheckpointSection(copy_to="/x")


def test_a_writer_copies_what_is_complete_and_keeps_the_newest(tmp_path: Path, uri: str) -> None:
    run = run_dir(tmp_path / "here")
    (run / "config.yaml").write_text("name: first\n")
    with checkpoint_writer(run, CheckpointSection(keep=2, copy_to=uri)) as writer:
        for iteration in (1, 2, 3):
            made = write_checkpoint(tmp_path / "made", iteration)
            writer.start(iteration, lambda partial, made=made: lambda: made.rename(partial))
            writer.wait()

    other = run_dir(tmp_path / "there")
    copies = CheckpointCopies(uri, other, keep=2)
    fetched = copies.fetch_newest()
    assert fetched is not None and [fetched] == list_checkpoints(other / "checkpoints")
    assert fetched.name == "iteration_000003"
    verify_checkpoint(fetched)
    assert (fetched / WEIGHTS).read_bytes() == bytes(range(200))
    assert (other / "config.yaml").read_text() == "name: first\n"
    files, root = fsspec.url_to_fs(copies.uri)
    names = sorted(Path(path).name for path in files.ls(f"{root}/checkpoints", detail=False))
    assert names == ["iteration_000002", "iteration_000003"]


def test_the_newest_copy_that_is_whole_and_sound_is_fetched(tmp_path: Path, uri: str) -> None:
    run = run_dir(tmp_path / "here")
    copies = CheckpointCopies(uri, run, keep=5)
    for iteration in (1, 2, 3):
        copies.add(write_checkpoint(run, iteration))
    copies.add(run / "checkpoints" / "iteration_000003")  # an update that was done again
    files, root = fsspec.url_to_fs(copies.uri)
    files.rm(f"{root}/checkpoints/iteration_000003/algorithm.json")  # a copy that was interrupted is none
    files.pipe(f"{root}/checkpoints/iteration_000002/{WEIGHTS}", b"other")

    other = run_dir(tmp_path / "there")
    damaged = write_checkpoint(other, 1)
    (damaged / WEIGHTS).write_bytes(b"")
    said: list[str] = []
    fetched = CheckpointCopies(uri, other, keep=5).fetch_newest(find_checkpoint(other)[1], said.append)
    assert fetched is not None and fetched == damaged
    verify_checkpoint(fetched)
    assert sorted(path.name for path in fetched.parent.iterdir()) == [fetched.name, f"{fetched.name}.damaged"]
    there = f"{copies.uri}/checkpoints/iteration_000002"
    assert said == [
        f"{there} is damaged: {WEIGHTS} has 5 bytes, 200 were written",
        f"{damaged} is damaged: {WEIGHTS} has 0 bytes, 200 were written; "
        f"it is kept as {fetched.name}.damaged, the run resumes from iteration_000001",
        f"iteration_000001 was fetched from {copies.uri}",
    ]
    assert files.exists(f"{root}/checkpoints/iteration_000002/{WEIGHTS}")


def test_a_run_whose_copies_are_all_damaged_does_not_start_anew_by_itself(tmp_path: Path, uri: str) -> None:
    copies = CheckpointCopies(uri, run_dir(tmp_path / "here"), keep=1)
    copies.add(write_checkpoint(tmp_path / "here" / "run", 1))
    files, root = fsspec.url_to_fs(copies.uri)
    files.pipe(f"{root}/checkpoints/iteration_000001/{WEIGHTS}", b"other")
    there = run_dir(tmp_path / "there")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="holds damaged checkpoints only"):
            checkpoint_to_resume(there, start=True, fetch=CheckpointCopies(uri, there, keep=1).fetch_newest)
    assert list((there / "checkpoints").iterdir()) == []


def test_a_run_without_copies_has_nothing_to_fetch(tmp_path: Path, uri: str) -> None:
    assert CheckpointCopies(uri, run_dir(tmp_path), keep=1).fetch_newest() is None


def test_where_nothing_can_be_written_a_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    for uri, why in (("nosuch://bucket", "nosuch"), (f"file://{tmp_path}/a_file", "a_file")):
        sentence = rf"checkpoint\.copy_to = {uri}/run cannot be written: .*{why}"
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint_writer(run_dir(tmp_path / uuid.uuid4().hex), CheckpointSection(copy_to=uri))


def test_the_command_that_resumes_or_starts_goes_on_from_a_copy_where_there_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/copies"
    keys = ["training.num_iterations=2", "evaluation.at_end=false", f"checkpoint.copy_to={uri}"]
    lost = run_dir(tmp_path / "lost_host")
    (lost / "config.yaml").write_text(config_yaml(load_experiment(QUICKSTART, keys)))
    CheckpointCopies(uri, lost, keep=1).add(write_checkpoint(lost, 2))
    new = tmp_path / "new_host" / "run"
    assert main([str(QUICKSTART), *keys, "--resume-or-start", str(new)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"iteration_000002 was fetched from {uri}/run",
        f"{new} is complete: 2 iterations",
    ]
    assert [path.name for path in list_checkpoints(new / "checkpoints")] == ["iteration_000002"]


def test_the_command_that_resumes_or_starts_takes_a_copy_where_its_own_checkpoints_are_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        "training.num_iterations=2",
        "evaluation.at_end=false",
        f"checkpoint.copy_to=file://{tmp_path}/copies",
    ]
    run = run_dir(tmp_path / "host")
    (run / "config.yaml").write_text(config_yaml(load_experiment(QUICKSTART, keys)))
    own = write_checkpoint(run, 2)
    CheckpointCopies(f"file://{tmp_path}/copies", run, keep=1).add(own)
    (own / WEIGHTS).write_bytes(b"other")
    assert main([str(QUICKSTART), *keys, "--resume-or-start", str(run)]) == 0
    assert "it is kept as iteration_000002.damaged" in capsys.readouterr().out
    verify_checkpoint(own)

"""Run directories whose files are cut off or hold anything: a sentence, or a line left out and counted."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged_bytes, damaged_json, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from inspect_helpers import trajectory_records, write_run
from run_helpers import write_checkpoint

from serl.algorithm_state import CheckpointError, read_algorithm_state
from serl.config.errors import ConfigError
from serl.evaluation import EvaluationResult, wilson_interval
from serl.manifest import verify_checkpoint
from serl.rollout.failures import FailureCount
from serl.run.evaluations import append_evaluation, read_evaluations
from serl.run.failures import FailureReport
from serl.run.metrics_writer import drop_lines_after, read_metrics
from serl.run.resume import checkpoint_to_resume, is_complete, require_run_dir
from serl.run.writer_lock import RECORD, Writer, WriterLock, read_writer
from tools.curve import training_success
from tools.inspect.__main__ import main as inspect
from tools.report.reading import UnreadableSweepError, progress, read_sweep
from tools.report.timing import seconds_per_iteration
from tools.sweep.runs import Attempt, add_attempt

CHECKPOINT = "checkpoints/iteration_000002"
# Of this machine, where no process that lives began at its beginning.
DEAD_WRITER = replace(Writer.this_process(), pid=1234, started="0", since="yesterday", token="0", beat=1.0)
LINE_FILES = ("metrics.jsonl", "evaluations.jsonl", "trajectories.jsonl", "failures.jsonl")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one finished run of two updates, with everything that a run leaves behind."""
    sweep = tmp_path_factory.mktemp("sweep")
    run_dir = write_run(sweep / "arm" / "seed_0" / "run-1", trajectory_records(2, 1, 2, 1))
    rate = wilson_interval(3, 4)
    (run_dir / "evaluations.jsonl").unlink()
    for at in (0, 2):
        result = EvaluationResult(at, rate, {"find": rate}, 5.0, 0.1, 0, 1.0, {"game": True})
        append_evaluation(run_dir, result)
    (run_dir / "config.yaml").write_text("name: a\nmodel: {path: p}\ntraining: {num_iterations: 2}\n")
    names = ("packages", "git_commit", "git_changed_files", "cpus", "platform", "python")
    (run_dir / "versions.json").write_text(json.dumps(dict.fromkeys(names, "1") | {"packages": {}}))
    failure = asdict(FailureCount("judge", "r", 2, 1.0, 2.0, "text"))
    (run_dir / "failures.jsonl").write_text(json.dumps({"iteration": 1} | failure) + "\n")
    add_attempt(run_dir.parent, Attempt("failed", ["serl-run"], "log", 1.0, 2.0, 1, "no"))
    add_attempt(run_dir.parent, Attempt("finished", ["serl-run"], "log", 1.0, 2.0, 0, ""))
    for iteration in (1, 2):
        write_checkpoint(run_dir, iteration)
    return sweep


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def damaged_file(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are lost or others, or valid JSON in which a value is another."""
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    try:
        lines = [json.loads(content)]
    except ValueError:
        try:
            lines = [json.loads(line) for line in content.splitlines()]
        except ValueError:
            return draw(damaged_bytes(content))
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(damaged_json(lines[at]))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def with_damage(data: st.DataObject, recorded: Path, folder: Path, *names: str) -> Path:
    """A copy of the sweep in which one of ``names`` is damaged; its run directory."""
    shutil.rmtree(folder / "sweep", ignore_errors=True)
    shutil.copytree(recorded, folder / "sweep")
    run_dir = folder / "sweep" / "arm" / "seed_0" / "run-1"
    file = run_dir / data.draw(st.sampled_from(names))
    file.write_bytes(data.draw(damaged_file(file.read_bytes())))
    return run_dir


@fuzzed(15)
@given(st.data())
def test_a_run_with_a_damaged_checkpoint_resumes_from_a_sound_one_or_says_why_not(
    recorded: Path, folder: Path, data: st.DataObject
):
    names = ("algorithm.json", "manifest.json", "policy/model.safetensors")
    run_dir = with_damage(data, recorded, folder, *(f"{CHECKPOINT}/{name}" for name in names))
    require_run_dir(run_dir, new=False)
    checkpoint = checkpoint_to_resume(run_dir, start=False)
    assert checkpoint is not None
    verify_checkpoint(checkpoint)
    assert read_algorithm_state(checkpoint)["weights_seq_no"] in (1, 2)
    assert checkpoint.name == "iteration_000002" or (run_dir / f"{CHECKPOINT}.damaged").is_dir()


@fuzzed(15)
@given(state=st.data())
def test_a_checkpoint_without_manifest_has_a_state_or_is_none(folder: Path, state: st.DataObject):
    whole = {"weights_seq_no": 2, "buffer": {"counters": {"groups_taken": 3}, "tasks": []}, "totals": {}}
    content = state.draw(damaged_file(json.dumps(whole).encode()))
    (folder / "algorithm.json").write_bytes(content)
    try:
        assert isinstance(read_algorithm_state(folder)["weights_seq_no"], int)
    except CheckpointError as error:
        assert str(folder) in str(error)


@fuzzed(15)
@given(st.data())
def test_a_run_resumes_whatever_its_lines_hold(recorded: Path, folder: Path, data: st.DataObject):
    run_dir = with_damage(data, recorded, folder, *LINE_FILES)
    checkpoint = run_dir / CHECKPOINT
    experiment = read_sweep(recorded).runs[0].experiment
    assert is_complete(experiment, run_dir, checkpoint) in (True, False)
    for name in LINE_FILES:
        drop_lines_after(run_dir / name, 1)
        lines = (run_dir / name).read_bytes().split(b"\n")[:-1]
        assert all(json.loads(line)["iteration"] <= 1 for line in lines)
    FailureReport(run_dir, print, lambda: 1).write()


@fuzzed(15)
@given(damaged_file(json.dumps(asdict(DEAD_WRITER)).encode()))
@example(b"[" * 100_000)
@example(json.dumps(asdict(replace(DEAD_WRITER, beat=float("nan")))).encode())
def test_a_record_of_a_writer_is_read_or_nobodys(folder: Path, content: bytes):
    (folder / RECORD).write_bytes(content)
    found = read_writer(folder)
    assert found is None or found == read_writer(folder)
    # One of elsewhere would be watched for a minute.
    if found is None or found.pid_space == DEAD_WRITER.pid_space:
        WriterLock.acquire(folder).release()
        assert read_writer(folder) is None


def read_for_a_report(run_dir: Path) -> None:
    try:
        sweep = read_sweep(run_dir.parents[2])
    except (ConfigError, UnreadableSweepError) as error:
        assert str(run_dir) in str(error)
        return
    for run in sweep.runs:
        assert len(progress(run)) == len(run.evaluations)
        assert all(isinstance(seconds, float) for seconds in seconds_per_iteration([run]))
        assert len(run.values("rollout/success")) <= len(run.rows)


def read_for_a_curve(run_dir: Path) -> None:
    iterations, success = training_success(run_dir)
    assert len(iterations) == len(success) and all(isinstance(rate, int | float) for rate in success)
    assert all(result.overall.rate is not None for result in read_evaluations(run_dir))
    assert len(read_metrics(run_dir)) >= len(iterations)


def read_for_a_page(run_dir: Path) -> None:
    page = run_dir / "inspect.html"
    code = inspect([str(run_dir), "--out", str(page)])
    assert code == (0 if page.exists() else 2)


@pytest.mark.parametrize("read", [read_for_a_report, read_for_a_curve, read_for_a_page])
@fuzzed(15)
@given(data=st.data())
def test_tools_read_what_can_be_read_of_a_run(
    read: Callable[[Path], Any], recorded: Path, folder: Path, data: st.DataObject
):
    names = [*LINE_FILES, "config.yaml", "versions.json", "../attempts.jsonl"]
    read(with_damage(data, recorded, folder, *names))

"""What a node of a cluster lacks, said in a table before any actor starts there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from serl.algorithm_state import CheckpointError
from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.durable_files import FileDigest
from serl.manifest import complete_checkpoint
from serl.run import nodes
from serl.run.nodes import (
    Found,
    Needs,
    Node,
    NodesLackError,
    look_around,
    needs_of,
    require_whole_checkpoints,
    table,
)
from serl.run.preflight import examine_inputs
from serl.run.preflight.output import examine_output
from serl.run.preflight.variables import READ_VARIABLES, examine_variables, forwarded_variables
from serl.run.resume import require_run_dir

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"
FINE = Found("ok", "ok", "ok", "ok", "ok", shares_run_dir=True)


@pytest.fixture
def experiment() -> ExperimentConfig:
    return load_experiment(QUICKSTART, ["cluster.env_vars=[TOKEN_OF_MINE]"])


@pytest.fixture
def needs(experiment: ExperimentConfig, tmp_path: Path) -> Needs:
    model_dir, run_dir = tmp_path / "policy", tmp_path / "run"
    model_dir.mkdir()
    run_dir.mkdir()
    (model_dir / "config.json").write_text("{}")
    (model_dir / "model.safetensors").write_bytes(bytes(10))
    (run_dir / "marker").touch()
    return needs_of(experiment, model_dir, run_dir / "marker")


def test_a_node_that_has_what_the_driver_has_lacks_nothing(needs: Needs) -> None:
    assert look_around(needs) == FINE and not FINE.lacks


def test_a_node_with_a_run_directory_of_its_own_lacks_nothing(needs: Needs, tmp_path: Path) -> None:
    found = look_around(replace(needs, marker=str(tmp_path / "elsewhere" / "marker")))
    assert found == replace(FINE, shares_run_dir=False) and not found.lacks


def test_each_thing_that_a_node_lacks_is_named(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = Path(needs.model_dir)
    (model_dir / "model.safetensors").write_bytes(bytes(9))
    assert look_around(needs).model == f"{model_dir} has another model.safetensors"
    (model_dir / "model.safetensors").unlink()
    assert look_around(needs).model == f"{model_dir} lacks model.safetensors"
    shutil.rmtree(model_dir)
    assert look_around(needs).model == f"no {model_dir}"

    moved = replace(needs, env_args={"data": str(tmp_path / "games")})
    assert str(tmp_path / "games") in look_around(moved).data
    other = replace(needs, task_hashes=dict.fromkeys(needs.task_hashes, "0"))
    assert look_around(other).data == "other tasks in train, valid_seen"

    (tmp_path / "file").touch()
    blocked = replace(needs, marker=str(tmp_path / "file" / "run" / "marker"))
    assert look_around(blocked).run_directory == f"cannot write in {tmp_path / 'file'}"
    bare = replace(needs, modules=("torch", "no_such_engine"))
    assert look_around(bare).packages == "no no_such_engine"
    monkeypatch.setattr(nodes, "free_shared_memory", lambda: 64e6)
    large = replace(needs, shared_memory_bytes=3e9)
    assert look_around(large).shared_memory == "0.06 GB free, needs 3.00 GB"


def test_relative_paths_begin_where_the_command_ran(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    found = look_around(replace(needs, start_dir=str(there), env_args={"data": "games"}))
    assert str(there / "games") in found.data
    assert Path.cwd() == tmp_path


def test_the_table_says_which_node_lacks_what_and_what_to_do(needs: Needs) -> None:
    bare = replace(FINE, model="no /models/policy", data="no games")
    found = {Node("a", "head (10.0.0.1)", 2, 0): FINE, Node("b", "gpu (10.0.0.2)", 2, 1): bare}
    lines = table(found, replace(needs, model_dir="/models/policy")).splitlines()
    assert lines[:4] == [
        "not every node has what actors need:",
        "node             model              data      run directory  packages  shared memory",
        "head (10.0.0.1)  ok                 ok        ok             ok        ok",
        "gpu (10.0.0.2)   no /models/policy  no games  ok             ok        ok",
    ]
    assert [line.partition(":")[0] for line in lines[4:]] == ["model", "data"]


def test_checkpoints_that_would_be_split_are_refused_before_training() -> None:
    unshared = {"b": "gpu (10.0.0.2)"}
    require_whole_checkpoints(["a", "a"], unshared, Path("/runs/first"))
    require_whole_checkpoints([], unshared, Path("/runs/first"))
    with pytest.raises(NodesLackError, match=r"learners on gpu \(10.0.0.2\) would write .* a /runs/first of"):
        require_whole_checkpoints(["a", "b"], unshared, Path("/runs/first"))


def test_a_checkpoint_of_which_a_part_is_on_another_host_is_not_completed(tmp_path: Path) -> None:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "here").write_bytes(b"weights")
    files = {name: FileDigest(7, "0" * 64) for name in ("learner/here", "learner/there")}
    with pytest.raises(CheckpointError, match="learner/there of the checkpoint .* output_dir that all hosts"):
        complete_checkpoint(tmp_path, files, {"weights_seq_no": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["learner"]


def test_variables_that_the_experiment_reads_are_passed_on(
    experiment: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in READ_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALFWORLD_DATA", "/data/alfworld")
    monkeypatch.setenv("MODELS", "/models")
    monkeypatch.setenv("NOTHING_TO_DO_WITH_IT", "1")
    (missing,) = examine_variables(experiment)
    assert (missing.verdict, missing.text) == ("wrong", "cluster.env_vars: TOKEN_OF_MINE is not set")
    monkeypatch.setenv("TOKEN_OF_MINE", "secret")
    assert list(examine_variables(experiment)) == []
    model = experiment.model.model_copy(update={"path": "$MODELS/policy"})
    named = experiment.model_copy(update={"model": model})
    assert forwarded_variables(named) == {
        "ALFWORLD_DATA": "/data/alfworld",
        "MODELS": "/models",
        "TOKEN_OF_MINE": "secret",
    }


def test_a_run_directory_in_what_ray_unpacked_for_a_job_is_refused(
    experiment: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    (found,) = examine_output(experiment.model_copy(update={"output_dir": "runs"}))
    assert found.verdict == "wrong" and f"{unpacked}/runs is a part of what Ray unpacked" in found.text
    with pytest.raises(ConfigError, match="deletes after it; give an absolute path"):
        require_run_dir(Path("runs") / "first", new=True)
    refused = [found.subject for found in examine_inputs(experiment) if "Ray unpacked" in found.text]
    assert refused == ["output"]
    given = examine_inputs(experiment, run_dir=tmp_path / "first")
    assert not [found for found in given if found.subject == "output"]
    assert list(examine_output(experiment.model_copy(update={"output_dir": str(tmp_path)}))) == []

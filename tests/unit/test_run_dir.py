"""What a run leaves behind, and what a resumed run keeps of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from inspect_helpers import trajectory_records, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serl.config import ExperimentConfig, ModelSection
from serl.config.errors import ConfigError
from serl.config.load import load_experiment
from serl.run.metrics_writer import drop_lines_after
from serl.run.resume import check_evaluable, check_resumable
from serl.run.run_dir import CONFIG, RunDir

# What reads a run directory, or is imported by what does.
READERS = (
    "serl.config",
    "serl.run.records",
    "serl.run.evaluations",
    "serl.run.metrics_writer",
    "serl.run.run_dir",
    "serl.run.checkpoint",
    "serl.run.resume",
    "serl.run.console",
    "serl.run.preflight",
    "serl.run.cli",
    "tools.curve",
    "tools.inspect.__main__",
    "tools.report.__main__",
    "tools.sweep.runs",
)


def experiment_in(folder: Path, **changes: object) -> ExperimentConfig:
    values = {"name": "test", "model": ModelSection(path="p"), "output_dir": str(folder / "runs")}
    return ExperimentConfig.model_validate(values | changes)


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_new_run_holds_its_config_its_versions_and_its_folders(tmp_path: Path):
    experiment = experiment_in(tmp_path, seed=5)
    run_dir = RunDir.create(experiment)
    assert run_dir.path.parent == tmp_path / "runs" and run_dir.path.name.startswith("test-")
    assert load_experiment(run_dir.path / CONFIG) == experiment
    recorded = json.loads((run_dir.path / "versions.json").read_text())
    assert {"ray", "torch", "transformers"} <= set(recorded["packages"])
    assert recorded["python"].startswith("3.")
    assert run_dir.logs.is_dir() and (run_dir.path / "checkpoints").is_dir()


def test_two_runs_of_the_same_second_get_two_folders(tmp_path: Path):
    experiment = experiment_in(tmp_path)
    assert len({RunDir.create(experiment).path for _ in range(3)}) == 3


def test_metrics_are_json_lines_with_null_for_what_json_cannot_hold(tmp_path: Path):
    run_dir = RunDir.create(experiment_in(tmp_path))
    run_dir.metrics.start(0)
    run_dir.metrics.write(1, {"learner/loss": 0.5, "learner/ratio": float("nan")})
    run_dir.metrics.close()
    (line,) = lines_of(run_dir.path / "metrics.jsonl")
    assert line["iteration"] == 1 and line["learner/loss"] == 0.5 and line["learner/ratio"] is None
    assert line["time"] > 1.7e9


def test_writing_metrics_before_the_start_is_an_error(tmp_path: Path):
    run_dir = RunDir.create(experiment_in(tmp_path))
    with pytest.raises(RuntimeError, match="start"):
        run_dir.metrics.write(1, {"a": 1.0})


def test_a_resumed_run_drops_later_lines_and_continues_the_same_curves(tmp_path: Path):
    experiment = experiment_in(tmp_path)
    first = RunDir.create(experiment)
    first.metrics.start(0)
    for iteration in (1, 2, 3, 4):
        first.metrics.write(iteration, {"loss": float(iteration)})
        with (first.path / "trajectories.jsonl").open("a") as file:
            file.write(json.dumps({"iteration": iteration, "trajectory_id": "g-0"}) + "\n")
    first.metrics.close()
    with (first.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "lo')

    resumed = RunDir.reopen(first.path, experiment)
    resumed.metrics.start(2)
    resumed.metrics.write(3, {"loss": 30.0})
    resumed.metrics.close()

    metrics = lines_of(first.path / "metrics.jsonl")
    assert [(line["iteration"], line["loss"]) for line in metrics] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [line["iteration"] for line in lines_of(first.path / "trajectories.jsonl")] == [1, 2]
    board = EventAccumulator(str(first.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_run_whose_curves_cannot_be_written_for_a_while_goes_on_and_so_do_they(tmp_path: Path):
    run_dir = RunDir.create(experiment_in(tmp_path))
    said: list[str] = []
    run_dir.metrics.start(0, said.append)
    # More names than a queue would hold, and than fit a file's buffer.
    metrics = {f"loss/of_part_{number}": float(number) for number in range(1000)}
    run_dir.metrics.write(1, metrics)
    (event_file,) = (run_dir.path / "tensorboard").iterdir()
    (descriptor,) = [
        int(entry.name)
        for entry in Path("/proc/self/fd").iterdir()
        if entry.exists() and entry.resolve() == event_file.resolve()
    ]
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    os.close(full)
    run_dir.metrics.write(2, metrics)
    assert said == [
        f"{run_dir.path / 'tensorboard'} lacks points, which metrics.jsonl has: No space left on device"
    ]
    run_dir.metrics.write(3, metrics)
    run_dir.metrics.close()
    assert [line["iteration"] for line in lines_of(run_dir.path / "metrics.jsonl")] == [1, 2, 3]
    board = EventAccumulator(str(run_dir.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/of_part_999")] == [
        (1, 999.0),
        (3, 999.0),
    ]
    assert len(said) == 1


def test_a_run_without_room_for_curves_tells_it_once_and_goes_on(tmp_path: Path):
    run_dir = RunDir.create(experiment_in(tmp_path))
    (run_dir.path / "tensorboard").touch()
    said: list[str] = []
    run_dir.metrics.start(0, said.append)
    for iteration in (1, 2):
        run_dir.metrics.write(iteration, {"loss": 1.0})
    run_dir.metrics.close()
    assert len(said) == 1 and "File exists" in said[0]
    assert len(lines_of(run_dir.path / "metrics.jsonl")) == 2


def test_a_resumed_run_keeps_its_former_config_beside_the_new_one(tmp_path: Path):
    run_dir = RunDir.create(experiment_in(tmp_path, seed=1))
    RunDir.reopen(run_dir.path, experiment_in(tmp_path, seed=2))
    RunDir.reopen(run_dir.path, experiment_in(tmp_path, seed=3))
    names = ("config.0.yaml", "config.1.yaml", "config.yaml")
    assert [yaml.safe_load((run_dir.path / name).read_text())["seed"] for name in names] == [1, 2, 3]


def test_dropping_keeps_a_file_as_it_is_when_nothing_is_too_new(tmp_path: Path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"iteration": 1}\n')
    before = file.stat().st_ino
    drop_lines_after(file, 1)
    assert file.stat().st_ino == before


def test_a_resumed_run_may_change_its_length_but_not_its_model(tmp_path: Path):
    before = experiment_in(tmp_path)
    longer = experiment_in(tmp_path, training={"num_iterations": 300})
    assert check_resumable(before, longer) == ["training.num_iterations: 150 -> 300"]
    other = experiment_in(tmp_path, model={"path": "q"}, env={"args": {"data": "d"}})
    with pytest.raises(ConfigError) as caught:
        check_resumable(before, other)
    assert "model.path = 'q' contradicts the run to be resumed: 'p'" in str(caught.value)
    assert "env.args" in str(caught.value)


def test_a_resumed_run_keeps_its_adapters(tmp_path: Path):
    before = experiment_in(tmp_path)
    adapted = experiment_in(tmp_path, model={"path": "p", "lora": {"rank": 4}})
    with pytest.raises(ConfigError, match="model.lora.rank = 4 contradicts the run to be resumed: null"):
        check_resumable(before, adapted)
    with pytest.raises(ConfigError, match="model.lora.alpha = null contradicts the run to be resumed: 32"):
        check_resumable(adapted, before)


def test_a_checkpoint_of_other_adapters_is_not_evaluated(tmp_path: Path):
    (tmp_path / "learner").mkdir()
    saved = {"rank": 4, "alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "learner" / "learner.json").write_text(json.dumps({"lora": saved}))
    check_evaluable(experiment_in(tmp_path, model={"path": "p", "lora": saved}), tmp_path)
    for lora in (None, saved | {"rank": 8}):
        with pytest.raises(ConfigError, match='which was saved with {"rank": 4, "alpha": 8, "target'):
            check_evaluable(experiment_in(tmp_path, model={"path": "p", "lora": lora}), tmp_path)


def test_a_run_is_read_without_torch_ray_or_vllm(tmp_path: Path):
    run_dir = write_run(tmp_path / "run", trajectory_records(1, 1, 1, 1))
    code = textwrap.dedent("""
        import importlib, sys

        def check(what):
            print(what, [name for name in ("torch", "ray", "vllm") if name in sys.modules])

        for name in sys.argv[2:]:
            importlib.import_module(name)
            check(name)
        from tools.inspect.__main__ import main as inspect
        assert inspect([sys.argv[1]]) == 0
        check("inspecting a run")
    """)
    run = subprocess.run(
        [sys.executable, "-c", code, str(run_dir), *READERS],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    shown = [line for line in run.stdout.splitlines() if line.endswith("]")]
    assert shown == [f"{what} []" for what in (*READERS, "inspecting a run")]

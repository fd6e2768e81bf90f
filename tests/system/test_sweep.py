"""Sweeps through the real Ray Tune; most trials run `sweep_program` in the place of serl-run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serl.config.errors import ConfigError
from tools.sweep.__main__ import BAD_INPUT, DONE, UNFINISHED, main
from tools.sweep.runs import (
    attempts,
    find_arms,
    finished_run,
    is_finished,
    plan_runs,
    resumable_run,
    run_dirs,
)

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "helpers" / "sweep_program.py"))
BASE = "model: {path: embedded:tiny_alfworld, max_model_len: 512}\nenv: {args: {data: embedded}}\n"
BASE += "rollout: {num_cpus_per_env_runner: 0.5, max_prompt_length: 400, max_response_length: 32}\n"
BASE += "serving: {num_cpus_per_replica: 0.5}\ntraining: {num_iterations: 3}\nevaluation: {at_end: false}\n"


def write_arms(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "_base.yaml").write_text("name: _base\n" + BASE)
    for name in names:
        (folder / f"{name}.yaml").write_text(f"extends: _base.yaml\nname: {name}\n")
    return folder


def sweep(arms: Path, out: Path, *options: str) -> int:
    return main([str(arms), "--out", str(out), *options], program=PROGRAM)


def test_arms_are_the_files_of_a_folder_and_bases_are_none(tmp_path: Path):
    arms = write_arms(tmp_path / "arms", "b", "a")
    (arms / "exploratory").mkdir()
    (arms / "exploratory" / "c.yaml").write_text("extends: ../_base.yaml\nname: c\n")
    assert [arm.name for arm in find_arms([arms])] == ["a", "b"]
    assert [arm.name for arm in find_arms([arms / "b.yaml", arms / "exploratory"])] == ["b", "c"]
    with pytest.raises(ConfigError, match="more than one arm is called 'a'"):
        find_arms([arms, arms / "a.yaml"])
    with pytest.raises(ConfigError, match="nowhere: no such file, or a folder without arms"):
        find_arms([arms / "nowhere"])


def test_runs_are_ordered_seed_by_seed(tmp_path: Path):
    runs = plan_runs(find_arms([write_arms(tmp_path / "arms", "a", "b")]), [3, 1], tmp_path / "out")
    assert [run.title for run in runs] == ["a seed 3", "b seed 3", "a seed 1", "b seed 1"]
    assert runs[1].folder == tmp_path / "out" / "b" / "seed_3"


def test_a_run_is_finished_after_its_last_update_and_its_last_evaluation(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("name: x\n" + BASE.replace("at_end: false", "at_end: true"))
    metrics, evaluations = tmp_path / "metrics.jsonl", tmp_path / "evaluations.jsonl"
    assert not is_finished(tmp_path)
    metrics.write_text('{"iteration": 2}\n{"iteration": 3}\n{"itera')
    evaluations.write_text('{"iteration": 0}\n')
    assert not is_finished(tmp_path)
    evaluations.write_text('{"iteration": 0}\n{"iteration": 3}\n')
    assert is_finished(tmp_path)
    metrics.write_text('{"iteration": 2}\n')
    assert not is_finished(tmp_path)


def test_a_failed_run_is_recorded_and_the_others_go_on_and_finished_ones_never_run_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    arms, out = write_arms(tmp_path / "arms", "fails", "works"), tmp_path / "out"
    assert sweep(arms, out, "--seeds", "0", "1") == UNFINISHED
    printed = capfd.readouterr().out
    assert "[1/4] fails seed 0: failed in" in printed and "the floor gave way (log: " in printed
    assert "[2/4] works seed 0: finished in" in printed and "2 of 4 runs are finished" in printed
    (failed,) = attempts(out / "fails" / "seed_1")
    assert (failed.outcome, failed.exit_code, failed.message) == ("failed", 1, "the floor gave way")
    assert "seed=1" in failed.command
    log = (out / "works" / "seed_1" / "attempt_1.log").read_text()
    assert log.startswith("own cluster"), log

    finished = finished_run(out / "works" / "seed_0")
    assert finished is not None and (finished / "config.yaml").read_text().count("seed: 0") == 1
    assert sweep(arms, out, "--seeds", "0") == UNFINISHED
    assert "[2/2] works seed 0: finished before" in capfd.readouterr().out
    assert len(attempts(out / "works" / "seed_0")) == 1
    assert len(attempts(out / "fails" / "seed_0")) == 2


def test_a_run_over_its_limit_is_stopped_and_resumes_from_its_checkpoint_under_a_higher_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    arms, out = write_arms(tmp_path / "arms", "waits"), tmp_path / "out"
    assert sweep(arms, out, "--limit-minutes", "0.1") == UNFINISHED
    folder = out / "waits" / "seed_0"
    assert [attempt.outcome for attempt in attempts(folder)] == ["over the limit"]
    assert attempts(folder)[0].seconds >= 6.0
    assert sweep(arms, out, "--limit-minutes", "0.1") == UNFINISHED
    assert "over the limit before" in capfd.readouterr().out and len(attempts(folder)) == 1
    interrupted = resumable_run(folder)
    assert sweep(arms, out, "--limit-minutes", "5") == DONE
    assert attempts(folder)[1].command[2:4] == ["--resume", str(interrupted)]
    assert run_dirs(folder) == [interrupted]


def test_ctrl_c_stops_the_running_one_with_a_checkpoint_and_the_sweep_continues_later(tmp_path: Path):
    arms, out = write_arms(tmp_path / "arms", "waits"), tmp_path / "out"
    code = f"import sys; from tools.sweep.__main__ import main; sys.exit(main(sys.argv[1:], {PROGRAM!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(arms), "--out", str(out)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    folder = out / "waits" / "seed_0"
    deadline = time.monotonic() + 300.0
    while not list(folder.glob("*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, "the run did not start"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300.0)
    assert process.returncode == UNFINISHED, output
    assert [attempt.outcome for attempt in attempts(folder)] == ["interrupted"], output
    assert "Traceback" not in output
    assert resumable_run(folder) is not None
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody runs it any more
    assert sweep(arms, out) == DONE


def test_a_run_that_another_process_still_runs_is_left_alone(tmp_path: Path):
    arms, out = write_arms(tmp_path / "arms", "works"), tmp_path / "out"
    folder = out / "works" / "seed_0"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(arms, out) == UNFINISHED
    assert attempts(folder)[0].message == "another process still runs it"
    assert run_dirs(folder) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["training.num_iteration=3"], "unknown key; did you mean training.num_iterations"),
        (["seed=3"], "seed=3: the sweep decides that"),
        (["env.args.data=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arms = write_arms(tmp_path / "arms", "works")
    assert sweep(arms, tmp_path / "out", *options) == BAD_INPUT
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_not_mixed_with_runs_of_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arms, out = write_arms(tmp_path / "arms", "works"), tmp_path / "out"
    (run_dir := out / "works" / "seed_0" / "works-1").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("name: works\n" + BASE + f"output_dir: {run_dir.parent}\n")
    (run_dir / "metrics.jsonl").write_text(json.dumps({"iteration": 3}) + "\n")
    assert sweep(arms, out) == DONE
    assert sweep(arms, out, "learner.lr=0.5") == BAD_INPUT
    assert "learner.lr: 1e-06 -> 0.5; use another --out" in capsys.readouterr().err
    assert sweep(arms, out.rename(tmp_path / "elsewhere")) == DONE

"""The supervisor of `python -m tools.gpu_check`: whatever a check's process does, each part has its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serl.config.load import load_experiment
from serl.run.processes import descendants
from tools.gpu_check.__main__ import main
from tools.gpu_check.checks import CHECKS, Check, all_parts
from tools.gpu_check.learning import learning_experiment
from tools.gpu_check.policy import make_experiment
from tools.gpu_check.results import Report, Result, read_results, require
from tools.gpu_check.runs import ON_ONE_GPU, QUICKSTART, SHORT
from tools.gpu_check.supervise import run_check

TWO = Check("module", "function", ("first", "second"))
BEGIN = """
import os, sys, time
from pathlib import Path
from tools.gpu_check.learning import learning_experiment
from tools.gpu_check.policy import make_experiment
from tools.gpu_check.results import Report
name, folder, num_gpus = sys.argv[1:]
report = Report(Path(folder) / "results.jsonl")
report.passed("first", tokens_per_s=1234.5, mode="FULL")
"""


def run(
    tmp_path: Path, then: str, num_gpus: int = 1, deadline_s: float = 120.0, check: Check = TWO
) -> list[Result]:
    program = [sys.executable, "-c", BEGIN + then]
    results = run_check(check, tmp_path / "check", num_gpus, deadline_s, program)
    assert descendants() == []
    return results


def test_parts_that_pass_are_told_with_their_figures(tmp_path: Path):
    first, second = run(tmp_path, 'report.passed("second")')
    assert (first.status, first.text) == ("passed", "tokens per s 1.23e+03, mode FULL")
    assert (second.status, second.text) == ("passed", "") and second.seconds > 0
    assert first.line(8).split() == ["first", "passed", f"{first.seconds:.0f}", "s", *first.text.split()]


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("sys.exit('no GPU answers')", "no GPU answers; all it said is in "),
        ("os.kill(os.getpid(), 11)", "its process ended with -11; all it said is in "),
        ("os._exit(7)", "its process ended with 7; all it said is in "),
        ("pass", "it ended without a word of this; all it said is in "),
    ],
)
def test_a_process_that_ends_early_fails_what_it_has_not_reported(then: str, words: str, tmp_path: Path):
    first, second = run(tmp_path, then)
    assert first.status == "passed"
    assert second.status == "FAILED" and second.text == f"{words}{tmp_path / 'check' / 'output.log'}"


def test_a_process_that_hangs_is_killed_with_its_children(tmp_path: Path):
    hang = "import subprocess\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)"
    _, second = run(tmp_path, hang, deadline_s=3.0)
    assert second.status == "FAILED" and second.text.startswith("no end within 3 s; ")


def test_a_process_that_reports_all_and_ends_badly_has_failed(tmp_path: Path):
    results = run(tmp_path, 'report.passed("second")\nos._exit(3)')
    assert [result.status for result in results] == ["passed", "FAILED"]


def test_without_a_gpu_what_passes_is_a_stand_in(tmp_path: Path):
    then = 'assert num_gpus == "0" and os.environ["CUDA_VISIBLE_DEVICES"] == ""\n'
    first, second = run(tmp_path, then + 'report.not_tried("second", "needs 1 GPU")', num_gpus=0)
    assert (first.status, second.status) == ("stand-in", "not tried")


@pytest.mark.parametrize(
    ("check", "num_gpus", "reason"),
    [
        (Check("m", "f", ("part",), num_gpus=2, has_stand_in=False), 1, "needs 2 GPUs; there are 1"),
        (Check("m", "f", ("part",), num_gpus=1, has_stand_in=False), 0, "needs 1 GPU; there are 0"),
        (Check("m", "f", ("part",), package="no-such-thing"), 1, "no-such-thing is not installed"),
    ],
)
def test_what_is_missing_is_the_reason_why_nothing_is_tried(
    check: Check, num_gpus: int, reason: str, tmp_path: Path
):
    assert run(tmp_path, "", num_gpus, check=check) == [Result("part", "not tried", reason)]


def test_a_line_that_was_cut_is_no_result(tmp_path: Path):
    Report(tmp_path / "results").passed("whole")
    with (tmp_path / "results").open("a") as opened:
        opened.write('{"name": "cut')
    assert [result.name for result in read_results(tmp_path / "results")] == ["whole"]


def test_a_requirement_that_does_not_hold_is_told():
    require(True, "holds")
    with pytest.raises(AssertionError, match="the engine broke"):
        require(False, "the engine broke")


def test_the_settings_of_checks_on_gpus_contradict_nothing(tmp_path: Path):
    """They run on GPUs only, where a sentence of the config would be all that a check says."""
    for experiment in (
        make_experiment(tmp_path, 0.4),
        make_experiment(tmp_path, 1.0, serving={"weight_transfer": "nccl"}, learner={"num_learners": 1}),
        learning_experiment(tmp_path, num_learners=2, num_gpus=1),
        load_experiment(QUICKSTART, [*SHORT, *ON_ONE_GPU]),
    ):
        assert experiment.learner.num_gpus_per_learner > 0
        assert experiment.serving.num_gpus_per_replica > 0


def test_names_are_told_apart_and_wrong_ones_refused(capsys: pytest.CaptureFixture[str]):
    assert len(set(all_parts())) == len(list(all_parts()))
    assert len({check.function for check in CHECKS}) == len(CHECKS)
    for arguments in (["no_such_check"], ["--minutes", "0"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
    assert "no such check: no_such_check; there are bfloat16, " in capsys.readouterr().err

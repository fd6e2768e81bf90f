"""What a person sees of a run."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serl.evaluation import EvaluationResult, wilson_interval
from serl.iteration import Progress
from serl.run.console import Console, summary_table
from serl.run.driver_log import prints_to_file


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def evaluation(
    iteration: int, successes: int, count: int, by_task_type: dict[str, tuple[int, int]]
) -> EvaluationResult:
    return EvaluationResult(
        weights_seq_no=iteration,
        overall=wilson_interval(successes, count),
        by_task_type={name: wilson_interval(*rate) for name, rate in by_task_type.items()},
        mean_steps=7.25,
        invalid_action_rate=0.125,
        unfinished=0,
        seconds=3.0,
    )


def progress(episodes: int, phase: str = "rollout") -> Progress:
    return Progress(
        phase=phase,
        episodes=episodes,
        episodes_wanted=64,
        env_steps=200,
        response_tokens=2000,
        staleness=0.5,
        seconds=4.0,
    )


def test_the_bar_shows_episodes_steps_tokens_and_staleness():
    terminal = Terminal()
    console = Console(progress_bar=True, stream=terminal)
    console.progress(progress(16))
    console.close()
    for shown in ("rollout", "16/64 episodes", "50 steps/s", "500 tokens/s", "staleness 0.5"):
        assert shown in terminal.getvalue()


def test_the_bar_counts_judgements_where_there_is_a_judge():
    terminal = Terminal()
    console = Console(progress_bar=True, stream=terminal)
    console.progress(replace(progress(16), judged=12, judge_pending=8))
    console.close()
    assert "staleness 0.5, judge 12/20" in terminal.getvalue()


def test_nothing_but_lines_goes_to_a_file_or_when_the_bar_is_off():
    for stream, wanted in ((io.StringIO(), True), (Terminal(), False)):
        console = Console(progress_bar=wanted, stream=stream)
        console.progress(progress(16))
        console.begin(Path("/runs/a"))
        assert stream.getvalue() == "run directory: /runs/a\nlogs of engines and servers: /runs/a/logs\n"


def test_an_iteration_is_one_line_with_the_metrics_it_has():
    stream = io.StringIO()
    Console(progress_bar=True, stream=stream).iteration(
        7, 40, {"rollout/success": 0.25, "throughput/env_steps_per_s": 123.4, "other": 1.0}
    )
    assert stream.getvalue() == "[ 7/40] success 0.25  steps/s 123\n"


def test_an_evaluation_is_one_line_with_its_interval():
    stream = io.StringIO()
    Console(progress_bar=True, stream=stream).evaluation("iteration 3", evaluation(3, 64, 128, {}))
    line = "evaluation, iteration 3: success 0.50 [0.41, 0.59] of 128, 7.2 steps, invalid 0.12 (3.0 s)\n"
    assert stream.getvalue() == line


def test_the_summary_compares_first_and_last_evaluation_by_task_type():
    before = evaluation(0, 38, 128, {"look": (1, 10), "pick": (5, 20)})
    after = evaluation(40, 77, 128, {"pick": (12, 20)})
    assert summary_table(before, after).splitlines() == [
        "success [95 %]  iteration 0               iteration 40",
        "all             0.30 [0.22, 0.38] of 128  0.60 [0.51, 0.68] of 128  higher, intervals apart",
        "look            0.10 [0.02, 0.40] of 10   -",
        "pick            0.25 [0.11, 0.47] of 20   0.60 [0.39, 0.78] of 20",
    ]
    assert "lower, intervals apart" in summary_table(after, before)
    assert "intervals overlap" in summary_table(before, before)


def test_a_single_evaluation_has_no_summary():
    stream = io.StringIO()
    Console(progress_bar=True, stream=stream).summary([evaluation(0, 1, 2, {})])
    assert stream.getvalue() == ""


def test_log_records_go_to_the_file_and_not_to_the_terminal(tmp_path: Path):
    code = (
        "import logging, sys; from pathlib import Path; import ray; "
        "from serl.run.driver_log import log_to_file; "
        "log_to_file(Path(sys.argv[1])); logging.getLogger('ray').warning('from ray'); "
        "logging.getLogger('serl.x').info('from serl')"
    )
    file = tmp_path / "driver.log"
    command = [sys.executable, "-c", code, str(file)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert run.stdout + run.stderr == ""
    assert "WARNING ray: from ray" in file.read_text() and "INFO serl.x: from serl" in file.read_text()


def test_a_console_goes_on_where_prints_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console, file = Console(progress_bar=False), tmp_path / "driver.log"
    with prints_to_file(file):
        print("(raylet) A worker died: \udc80")
        console.note("an episode failed")
    print("after")
    assert capsys.readouterr().out == "an episode failed\nafter\n"
    assert file.read_text() == "(raylet) A worker died: ?\n"


def test_missing_replicas_are_told_once_and_when_their_number_changes():
    terminal = io.StringIO()
    console = Console(progress_bar=False, stream=terminal)
    for serving, missing in ((2, 0), (1, 1), (1, 1), (0, 2), (2, 0), (2, 0)):
        console.replicas(float(serving), float(missing), Path("run/logs"))
    assert terminal.getvalue().splitlines() == [
        "1 of 2 replicas serve: see the newest run/logs/serving-*.log",
        "0 of 2 replicas serve: see the newest run/logs/serving-*.log",
        "2 of 2 replicas serve",
    ]


def test_env_runners_that_come_and_go_are_told_when_their_number_changes():
    terminal = io.StringIO()
    console = Console(progress_bar=False, stream=terminal)
    for playing, missing in ((2, 0), (2, 0), (2, 3), (5, 0), (4, 1), (4, 0)):
        console.env_runners(float(playing), float(missing))
    assert terminal.getvalue().splitlines() == [
        "2 of 5 env runners play",
        "5 of 5 env runners play",
        "4 of 5 env runners play",
        "4 of 4 env runners play",
    ]

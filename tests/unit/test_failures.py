"""What fails in a run: counted by reason, told once, kept in a file, and too much of it ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayTaskError
from rollout_helpers import rollout_request

from serl.config import ExperimentConfig, ModelSection
from serl.rollout.failures import FailureCount, FailureMonitor, TooManyFailuresError, shortened
from serl.rollout.report import FailedRollout
from serl.rollout.runner_pool import EnvRunnerError
from serl.run.ending import explain
from serl.run.failures import FailureReport
from serl.run.run_dir import RunDir

ORIGIN = "\nTraceback (most recent call last):\nOSError: the floor gave way"


def failed(
    reason: str = "environment_error",
    message: str = "task '7': step raised OSError",
    evaluation: bool = False,
) -> FailedRollout:
    return FailedRollout(rollout_request("7", evaluation=evaluation), reason, message)


def test_a_run_ends_once_more_than_the_share_of_a_window_has_failed():
    monitor = FailureMonitor(max_failed_share=0.5, window=10)
    monitor.episodes_failed([failed(message="task '3': reset raised KeyError"), *[failed()] * 4])
    monitor.require_episodes()
    monitor.episodes_failed([failed(message="task '7': step raised OSError" + ORIGIN)])
    with pytest.raises(TooManyFailuresError) as ended:
        monitor.require_episodes()
    assert str(ended.value) == (
        "6 of the last 6 episodes failed (6 environment_error), more than rollout.max_failed_share = 0.5 "
        "allows; the last: task '7': step raised OSError"
    )
    monitor.episodes_finished(5)
    monitor.require_episodes()


def test_a_share_of_one_never_ends_a_run():
    monitor = FailureMonitor(max_failed_share=1.0, window=10)
    monitor.episodes_failed([failed()] * 30)
    monitor.require_episodes()


def test_env_runners_may_die_now_and_then_but_not_all_the_time():
    monitor = FailureMonitor(max_failed_share=0.5, window=32)
    for death in range(8):
        lost = [failed("env_runner_died", f"env runner 1 died with 20 episodes (death {death})")] * 20
        monitor.episodes_failed(lost)
        monitor.require_episodes()
    monitor.episodes_failed([failed("env_runner_died", "env runner 1 died with 1 episodes (death 8)")])
    with pytest.raises(TooManyFailuresError, match="17 of the last 17 episodes .*17 env_runner_died"):
        monitor.require_episodes()


def test_aborted_episodes_say_nothing_about_the_run():
    monitor = FailureMonitor(max_failed_share=0.1, window=10)
    monitor.episodes_failed([failed("aborted")] * 30)
    monitor.require_episodes()


def test_an_evaluation_that_hardly_took_place_has_no_result():
    monitor = FailureMonitor(max_failed_share=0.5, window=1000)
    monitor.require_evaluation(4, [failed()] * 2)
    with pytest.raises(TooManyFailuresError, match="3 of an evaluation's 4 episodes failed"):
        monitor.require_evaluation(4, [failed()] * 3)


def test_failures_are_counted_by_kind_and_reason_with_the_last_text():
    told: list[tuple[str, str, int, str]] = []
    monitor = FailureMonitor(max_failed_share=0.5, window=100)
    monitor.on_failure = lambda count: told.append((count.kind, count.reason, count.count, count.last_text))
    monitor.episodes_failed([failed(message="a"), failed(message="b"), failed("prompt_error", "c", True)])
    monitor.failed("judge", "late", "d", count=3)
    assert told == [
        ("episode", "environment_error", 1, "a"),
        ("episode", "environment_error", 2, "b"),
        ("evaluation", "prompt_error", 1, "c"),
        ("judge", "late", 3, "d"),
    ]


def test_a_long_text_keeps_its_first_line_and_the_end_of_its_traceback():
    kept = shortened("task '7' failed\n" + "a frame\n" * 10_000 + "OSError: the floor gave way")
    assert len(kept) < 4100
    assert kept.startswith("task '7' failed\n…") and kept.endswith("a frame\nOSError: the floor gave way")
    assert len(shortened("x" * 10_000)) < 4100


def count(number: int, text: str, time: float = 20.0, reason: str = "environment_error") -> FailureCount:
    return FailureCount("episode", reason, number, first_time=time, last_time=time + 1.0, last_text=text)


def lines_of(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "failures.jsonl").read_text().splitlines()]


def test_the_first_of_a_reason_is_told_at_once_in_one_line_and_the_file_has_the_rest(tmp_path: Path):
    told: list[str] = []
    report = FailureReport(tmp_path, told.append, lambda: 3)
    report.take(count(1, "task '7': step raised OSError" + ORIGIN))
    assert lines_of(tmp_path)[0]["count"] == 1
    report.take(count(2, "task '8': \udc80 broke"))
    report.take(count(1, "task '9': no prompt", reason="prompt_error"))
    assert told == [
        "an episode failed (environment_error): task '7': step raised OSError; further ones are counted in "
        "failures.jsonl",
        "an episode failed (prompt_error): task '9': no prompt; further ones are counted in failures.jsonl",
    ]
    assert [(line["iteration"], line["reason"], line["count"]) for line in lines_of(tmp_path)] == [
        (3, "environment_error", 2),
        (3, "prompt_error", 1),
    ]
    assert lines_of(tmp_path)[0]["last_text"] == "task '8': \udc80 broke"


def test_a_resumed_run_adds_to_the_failures_of_its_earlier_parts(tmp_path: Path):
    experiment = ExperimentConfig(name="x", output_dir=str(tmp_path), model=ModelSection(path="embedded:x"))
    run_dir = RunDir.create(experiment)
    FailureReport(run_dir.path, print, lambda: 3).take(count(5, "before", time=10.0))
    with (run_dir.path / "failures.jsonl").open("a") as file:
        file.write('{"iteration": 1, "kind": "episode", "reason": "cut off"\n[]\n{"iteration": "x"}\n')
    run_dir.metrics.start(1)
    run_dir.metrics.close()
    told: list[str] = []
    resumed = FailureReport(run_dir.path, told.append, lambda: 2)
    resumed.take(count(1, "after", time=20.0))
    (line,) = lines_of(run_dir.path)
    assert (line["iteration"], line["count"], line["last_text"]) == (2, 6, "after")
    assert (line["first_time"], line["last_time"]) == (10.0, 21.0)
    assert len(told) == 1


FRAMES = "Traceback (most recent call last):\n  a\n  b\n  c\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EnvRunnerError(f"env runner 1 failed: KeyError: 'x'\n{FRAMES}KeyError: 'x'"), "KeyError: 'x'"),
        (TimeoutError("waited too long for the learners"), "waited too long for the learners"),
        (OSError(28, "No space left on device", "/runs/a"), "No space left on device: /runs/a"),
        (GetTimeoutError("Get timed out"), "GetTimeoutError: Get timed out"),
        (RayTaskError("update", f"{FRAMES}ValueError: b", ValueError("b")), "ValueError: b"),
        (RayTaskError("update", f"{FRAMES}ValueError: b", ValueError("b")), "RayTaskError: "),
    ],
)
def test_an_error_that_ends_a_run_is_a_sentence_and_a_file(tmp_path: Path, error: Exception, told: str):
    experiment = ExperimentConfig(name="x", output_dir=str(tmp_path), model=ModelSection(path="embedded:x"))
    run_dir = RunDir.create(experiment)
    said = explain(error, run_dir)
    assert said is not None
    sentence, file = said.splitlines()
    assert told in sentence and sentence.count(told) == 1
    assert file == f"the traceback is in {run_dir.driver_log}"
    assert type(error).__name__ in run_dir.driver_log.read_text()


def test_what_ray_raises_without_a_class_of_its_own_is_a_sentence_too(tmp_path: Path):
    experiment = ExperimentConfig(name="x", output_dir=str(tmp_path), model=ModelSection(path="embedded:x"))
    run_dir = RunDir.create(experiment)
    rays: dict[str, Any] = {"__name__": "ray._private.node"}
    exec("def start(): raise Exception('The current node timed out')", rays)
    with pytest.raises(Exception, match="timed out") as raised:
        rays["start"]()
    said = explain(raised.value, run_dir)
    assert said is not None and said.startswith("Ray: The current node timed out\n")


def test_an_error_that_nobody_expected_keeps_its_traceback(tmp_path: Path):
    experiment = ExperimentConfig(name="x", output_dir=str(tmp_path), model=ModelSection(path="embedded:x"))
    run_dir = RunDir.create(experiment)
    assert explain(ZeroDivisionError("a bug"), run_dir) is None
    assert "ZeroDivisionError: a bug" in run_dir.driver_log.read_text()

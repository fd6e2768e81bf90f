"""tools.inspect without a browser: what it reads, counts, names, and how it ends."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inspect_helpers import HOSTILE, step_record, trajectory_records, write_run

from serl.hindsight.context import render_context
from serl.hindsight.evidence import Candidate, Evidence, FeedbackPair, Outcome, StepEvidence
from serl.run.records import TRAJECTORIES, TrajectoryRecord
from serl.types import TeacherRecord
from tools.inspect.__main__ import main
from tools.inspect.evidence_kinds import evidence_kind
from tools.inspect.reading import Problems
from tools.inspect.run import read_run
from tools.inspect.summary import RunSummary


def teacher(**changes: Any) -> TeacherRecord:
    nothing = TeacherRecord(
        advantage=1.0,
        token_advantages=[],
        context=None,
        weights=[],
        log_ratios=[],
        context_effects=None,
        log_ratios_without_context=None,
    )
    return replace(nothing, **changes)


def record_with(weights: list[float | None], advantages: list[float], iteration: int = 1) -> TrajectoryRecord:
    (record,) = trajectory_records(1, 1, 1, 1)
    count = len(weights)
    step = record.steps[0].model_copy(
        update={
            "tokens": ["a"] * count,
            "token_ids": [5] * count,
            "teacher": teacher(
                token_advantages=advantages, weights=weights, log_ratios=[0.0] * count, context="known"
            ),
        }
    )
    return record.model_copy(update={"steps": [step], "iteration": iteration})


def embedded(page: str, identifier: str) -> dict:
    match = re.search(rf'<script type="application/json" id="{identifier}">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def test_the_page_holds_every_trajectory_and_asks_the_network_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    records = trajectory_records(num_iterations=2, groups_per_iteration=2, group_size=2, num_steps=3)
    run_dir = write_run(tmp_path / "run", records)
    assert main([str(run_dir)]) == 0
    page = (run_dir / "inspect.html").read_text(encoding="utf-8")
    summary = embedded(page, "summary-data")
    assert [row["id"] for row in summary["trajectories"]] == [record.trajectory_id for record in records]
    # 48 and 120 of 192 tasks, before and after.
    assert [row[:2] + row[4:] for row in summary["evaluations"]] == [[0, 0.25, 192], [2, 0.625, 192]]
    assert all(low < rate < high for _, rate, low, high, _ in summary["evaluations"])
    assert embedded(page, "trajectory-7") == json.loads(records[7].model_dump_json())
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(|fetch\(|XMLHttpRequest", page)
    said = capsys.readouterr()
    assert "8 trajectories, 24 steps" in said.out and said.err == ""


def test_the_page_has_the_runs_curves_and_its_failures_with_their_reasons(tmp_path: Path):
    run_dir = write_run(tmp_path / "run", trajectory_records(2, 1, 1, 1))
    failure = {"kind": "episode", "reason": "environment_error", "count": 3, "last_text": "Traceback …\nno"}
    rows = [
        failure | {"iteration": 2, "first_time": 1.0, "last_time": 2.0},
        {"iteration": 2, "kind": "judge"},
    ]
    (run_dir / "failures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(run_dir)]) == 0
    summary = embedded((run_dir / "inspect.html").read_text(encoding="utf-8"), "summary-data")
    assert summary["failures"] == [failure | {"iteration": 2}]
    assert summary["curves"] == {"learner/effective_lambda": [[1, 0.49], [2, 0.48]]}


def test_the_page_of_a_run_by_serl_0_1_is_the_same(tmp_path: Path):
    records = trajectory_records(num_iterations=1, groups_per_iteration=1, group_size=2, num_steps=2)
    present, former = (write_run(tmp_path / version / "run", records) for version in ("present", "former"))
    (former / "evaluations.jsonl").rename(former / "panels.jsonl")
    text = (former / TRAJECTORIES).read_text()
    for name, former_name in (
        ("rollout_index", "member"),
        ("log_ratios", "deltas"),
        ("context_effects", "feedback_effects"),
        ("log_ratios_without_context", "drifts"),
    ):
        assert f'"{name}":' in text
        text = text.replace(f'"{name}":', f'"{former_name}":')
    (former / TRAJECTORIES).write_text(text)
    assert main([str(present)]) == main([str(former)]) == 0
    assert (former / "inspect.html").read_bytes() == (present / "inspect.html").read_bytes()


def test_no_text_of_a_model_ends_its_script_element(tmp_path: Path):
    (record,) = trajectory_records(1, 1, 1, 1)
    messages = [{"role": "user", "content": HOSTILE}]
    step = record.steps[0].model_copy(update={"messages": messages, "next_observation": HOSTILE})
    hostile = record.model_copy(update={"steps": [step], "task_type": HOSTILE})
    run_dir = write_run(tmp_path / "run", [hostile])
    assert main([str(run_dir)]) == 0
    page = (run_dir / "inspect.html").read_text(encoding="utf-8")
    assert HOSTILE not in page and "pwned = 1</script>" not in page
    assert embedded(page, "summary-data")["trajectories"][0]["task_type"] == HOSTILE
    assert embedded(page, "trajectory-0") == json.loads(hostile.model_dump_json())


def test_lines_that_cannot_be_read_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, short = trajectory_records(1, 1, 2, 1)
    unequal = json.loads(short.model_dump_json())
    unequal["steps"][0]["old_logprobs"].pop()
    run_dir = write_run(
        tmp_path / "run",
        [good],
        '{"iteration": 1, "traj',
        "[1, 2]",
        "",
        json.dumps(unequal),
        '{"iteration": 2}',
    )
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 1.0}\n{"iteration": 3, "rollout/success": NaN}\n')
    (run_dir / "evaluations.jsonl").write_bytes(b'{"iteration": 1, "overall": "\xff"}\n')
    assert main([str(run_dir)]) == 0
    said = capsys.readouterr().err
    for name in (
        "trajectories.jsonl line 2: Invalid JSON",
        "trajectories.jsonl line 3: ",
        "trajectories.jsonl line 5: steps.0: Value error, old_logprobs has ",
        "trajectories.jsonl line 6: trajectory_id: Field required (and ",
        "metrics.jsonl line 2: no object with an iteration",
        "metrics.jsonl line 3: NaN is not JSON",
        "evaluations.jsonl line 1: ",
        "7 lines or files could not be read",
    ):
        assert name in said, said
    summary = embedded((run_dir / "inspect.html").read_text(encoding="utf-8"), "summary-data")
    assert summary["num_problems"] == len(summary["problems"]) == 7
    assert len(summary["trajectories"]) == 1 and summary["evaluations"] == []


def test_only_the_first_problems_are_named_and_all_are_counted(tmp_path: Path):
    run_dir = write_run(tmp_path / "run", trajectory_records(1, 1, 1, 1), *["{"] * 50)
    problems = Problems()
    read_run(run_dir, problems)
    assert (problems.count, len(problems.named)) == (50, 20)


@pytest.mark.parametrize("lines", [None, "", "{\n"])
def test_a_run_without_records_is_told_how_to_make_them(
    lines: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if lines is not None:
        (tmp_path / TRAJECTORIES).write_text(lines)
    assert main([str(tmp_path)]) == 2
    assert "logging.trajectories_per_iteration=8" in capsys.readouterr().err
    assert not (tmp_path / "inspect.html").exists()


def test_a_missing_folder_and_an_unwritable_page_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    run_dir = write_run(tmp_path / "run", trajectory_records(1, 1, 1, 1))
    assert main([str(run_dir), "--out", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_weights_are_counted_by_the_sign_of_the_advantage_and_bounds_by_themselves():
    summary = RunSummary({"hindsight": {"weight_clip": 0.2}}, [], [])
    summary.add(record_with([0.8, 0.81, 1.0, 1.2, None, 1.2], [1.0, 1.0, 1.0, -1.0, 1.0, 0.0]))
    values = summary.as_values("run", Problems())
    positive, negative = values["histogram"]["positive"], values["histogram"]["negative"]
    # 18 bins of 0.4 / 18 between the bounds, one more on each side for what is on a bound.
    assert len(positive) == 20 and len(values["histogram"]["edges"]) == 21
    assert [index for index, count in enumerate(positive) if count] == [0, 1, 10]
    assert negative == [0] * 19 + [1]
    assert values["trajectories"][0]["num_clipped"] == 2
    assert (values["histogram"]["first_label"], values["histogram"]["last_label"]) == ("≤ 0.8", "≥ 1.2")


def test_without_a_known_weight_clip_nothing_counts_as_clipped():
    summary = RunSummary({}, [], [])
    summary.add(record_with([0.8, 3.0], [1.0, 1.0]))
    values = summary.as_values("run", Problems())
    assert values["weight_bounds"] is None and values["trajectories"][0]["num_clipped"] == 0
    assert sum(values["histogram"]["positive"]) == 2 and values["histogram"]["positive"][-1] == 1


def test_the_kind_of_evidence_is_read_from_what_training_renders():
    answer = Evidence("immediate_feedback", text="## An attempt at this task that was quoted")
    sample = Evidence("successful_sample", text="a sample")
    judged = Evidence("judge_current_traj", text="a verdict")

    def kind(evidence: StepEvidence) -> str:
        return evidence_kind(teacher(context=render_context(evidence)[0]), effective_lambda=0.3)

    assert kind(StepEvidence(parts=(answer,))) == "immediate_feedback"
    assert kind(StepEvidence(parts=(sample, answer))) == "successful_sample + immediate_feedback"
    assert kind(StepEvidence(parts=(judged,))) == "judge"
    about = Evidence("next_observation", text="a room", about="best attempt")
    solved = Outcome(success=True, reward=10.0)
    candidate = Candidate("look", 1, 1, 10.0, solved, solved, (about,))
    assert kind(StepEvidence(candidates=(candidate,))) == "anchor + next_observation"
    assert kind(StepEvidence(feedback_pairs=(FeedbackPair("look", "ok"),))) == "anchor"
    own = "Hindsight: …\n\n## How another attempt went on\n## not a title"
    assert evidence_kind(teacher(context=own), 0.3) == "How another attempt went on"
    assert evidence_kind(teacher(context="something else"), 0.3) == "other evidence"


def test_a_step_without_evidence_is_told_from_one_that_was_not_asked():
    assert evidence_kind(teacher(), effective_lambda=0.3) == "no evidence"
    assert evidence_kind(teacher(), effective_lambda=None) == "no evidence"
    assert evidence_kind(teacher(advantage=0.0), effective_lambda=0.3) == "not asked: advantage 0"
    assert evidence_kind(teacher(), effective_lambda=0.0) == "not asked: λ is 0"


def test_the_summary_counts_evidence_by_iteration_and_what_was_left_out():
    metrics = [
        {"iteration": 1, "learner/effective_lambda": 0.5, "rollout/success": 0.4},
        {"iteration": 2, "learner/effective_lambda": 0.0, "records/trajectories_left_out": 3.0},
    ]
    summary = RunSummary({}, metrics, [])
    for iteration in (1, 1, 2):
        summary.add(record_with([1.0], [1.0], iteration))
    values = summary.as_values("run", Problems())
    assert values["evidence"] == {
        "kinds": ["other evidence", "not asked: λ is 0"],
        "by_iteration": [(1, [2, 0]), (2, [0, 1])],
    }
    assert values["num_left_out"] == 3
    assert values["success"] == {"of": "all training episodes", "rates": [(1, 0.4)]}


def test_hand_made_records_are_as_regular_as_real_ones():
    step = step_record(random.Random(0), iteration=3, index=0, advantage=0.9)
    assert "".join(step.tokens) == step.response and sum(step.action_mask) >= 3

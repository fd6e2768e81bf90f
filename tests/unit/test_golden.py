"""The golden checker, on recorded cases and on cases made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recordings import origin, recordings

from tools.golden import KINDS, MAX_SHOWN, difference, main

SPAN = {"id": "span", "kind": "action_span", "text": "<action>look</action>", "expect": {"spans": [[8, 12]]}}


def write_cases(folder: Path, *cases: Any) -> str:
    path = folder / "cases.jsonl"
    path.write_text("\n".join(json.dumps(case) for case in cases) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", recordings("golden"), ids=origin)
def test_every_recorded_case_passes(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    path = folder / f"{kind}.jsonl"
    assert main([str(path)]) == 0
    num_cases = sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").split("\n"))
    assert capsys.readouterr().out.splitlines()[-1] == f"{num_cases} passed, 0 failed"


def test_a_passing_file_exits_zero_and_closes_with_the_count(tmp_path, capsys):
    assert main([write_cases(tmp_path, SPAN, SPAN)]) == 0
    assert capsys.readouterr().out == "2 passed, 0 failed\n"


def test_a_wrong_answer_is_shown_and_exits_one(tmp_path, capsys):
    wrong = {**SPAN, "id": "wrong", "expect": {"spans": [[8, 13]]}}
    assert main([write_cases(tmp_path, wrong, SPAN)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["FAILED wrong: .spans[0][1]: expected 13, got 12", "1 passed, 1 failed"]


@pytest.mark.parametrize(
    "case",
    [
        {**SPAN, "kind": "telepathy"},
        {**SPAN, "kind": ["action_span"]},
        {"id": "no kind"},
        {"id": "no text", "kind": "action_span", "expect": {"spans": []}},
        {"id": "λ", "kind": "lambda_schedule", "config": None, "expect": {"effective_lambda": 0.0}},
        {
            "id": "mode",
            "kind": "hindsight",
            "config": {"mode": "clairvoyance", "trajectory_format": "response", "remove_thinking": True},
            "trajectories": [],
            "expect": [],
        },
        {
            "id": "estimator",
            "kind": "group_advantage",
            "config": {"estimator": "guess", "across": "steps"},
            "steps": [
                {"group": "g", "trajectory": "t", "anchor": "a", "reward": 1.0, "discounted_return": 1.0}
            ],
            "expect": {"advantages": [0.0]},
        },
    ],
)
def test_what_cannot_be_answered_is_a_failure_and_not_a_skip(case, tmp_path, capsys):
    assert main([write_cases(tmp_path, case)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"


def test_only_the_first_twenty_failures_show_their_difference(tmp_path, capsys):
    cases = [{**SPAN, "id": f"case{n}", "expect": {"spans": []}} for n in range(MAX_SHOWN + 3)]
    assert main([write_cases(tmp_path, *cases)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("expected" in line for line in lines) == MAX_SHOWN
    assert lines[-2:] == ["FAILED case22", "0 passed, 23 failed"]


@pytest.mark.parametrize("content", [b"{not json", b"[1, 2]\n", b"\xff\xfe\n"])
def test_a_file_that_holds_no_cases_exits_two(content: bytes, tmp_path, capsys):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content)
    assert main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_missing_file_exits_two(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere.jsonl")]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    text = "\u2028<action>look</action>"
    path = tmp_path / "cases.jsonl"
    case = {**SPAN, "text": text, "expect": {"spans": [[9, 13]]}}
    path.write_text(json.dumps(case, ensure_ascii=False), encoding="utf-8")
    assert main([str(path)]) == 0


def test_numbers_compare_with_a_tolerance_and_truth_values_without():
    assert difference({"x": 100.0}, {"x": 100.009}) is None
    assert difference({"x": 100.0}, {"x": 100.011}) is not None
    assert difference(0.0, 1.9e-5) is None
    assert difference(True, 1) is not None
    assert difference([1.0], [1.0, 2.0]) is not None
    assert difference({"x": 1.0}, {}) is not None
    assert difference(0.0, float("nan")) is not None

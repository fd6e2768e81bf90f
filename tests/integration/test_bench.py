"""What can be said of the benchmarks without measuring anything worth a figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serl.run.driver_log import output_to_file
from tools.bench.__main__ import main
from tools.bench.figures import Figure, Figures, shown


def test_the_env_benchmark_prints_ratios_and_writes_all_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "figures.json"
    sizes = ["--games", "2", "--steps", "3", "--products", "1000"]
    assert main(["env", *sizes, "--repetitions", "2", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bench env: ")
    assert lines[-1].startswith("summary env: native episode") and "; webshop step " in lines[-1]
    assert "webshop search, 1000 products / webshop search, 100 products " in lines[-1]
    figures = {figure["name"]: figure for figure in json.loads(file.read_text())["figures"]}
    step = figures["native step"]
    assert len(step["values"]) == 2 and step["at_most"] == 0.1
    assert step["median"] == pytest.approx(sum(step["values"]) / 2)
    assert figures["native episode of a loaded game"]["median"] > 0.0


def test_dialogues_are_computed_once_and_row_by_row_again_at_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "figures.json"
    sizes = {
        "episodes": 2,
        "steps": 6,
        "every": 2,
        "first": 20,
        "observation": 6,
        "response": 5,
        "evidence": 3,
    }
    options = [
        f"--{name}{'' if name in list(sizes)[:3] else '-tokens'}={size}" for name, size in sizes.items()
    ]
    model = ["--model", "embedded:tiny_alfworld", "hindsight.log_ratio_sample_rows=0"]
    assert main(["conversations", *options, "--repetitions", "1", "--json", str(file), *model]) == 0
    assert "conversation, training / row by row, training " in capsys.readouterr().out
    figures = {figure["name"]: figure["median"] for figure in json.loads(file.read_text())["figures"]}
    # 20 tokens that both begin with; of each step an observation, four tokens of the template, a response.
    assert figures["conversation, tokens computed"] == 20 + 2 * 6 * (6 + 4 + 5)
    # The same but for the last answer; after each observation evidence, the template and the response again.
    assert figures["teacher, tokens computed"] == 20 + 2 * (5 * (6 + 4 + 5) + 6 + 6 * (3 + 4 + 5))
    # Steps 1, 3 and 5 for all: each with the turns before it, and with fillers up to the longest of its pass.
    rows = 2 * sum(20 + (step + 1) * (6 + 4 + 5) for step in (1, 3, 5))
    longest = 2 * 3 * (20 + 6 * (6 + 4 + 5))
    assert 2 * rows <= figures["row by row, tokens computed"] <= 2 * longest


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["speed"],
        ["env", "--games", "0"],
        ["env", "--steps", "many"],
        ["rollout", "--repetitions", "-1"],
        ["startup", "--games", "3"],
        ["driver", "--learners", "0"],
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "python -m tools.bench" in capsys.readouterr().err


def test_what_cannot_be_measured_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--data", str(tmp_path)]) == 2
    assert "no ALFWorld games" in capsys.readouterr().err
    assert main(["env", "--games", "1000000"]) == 2
    assert "1000000 games are asked for" in capsys.readouterr().err


def test_a_key_of_no_experiment_is_told_in_words(capsys: pytest.CaptureFixture[str]):
    assert main(["learner", "learner.learning_rate=1"]) == 2
    assert "learner.learning_rate" in capsys.readouterr().err


def test_a_median_is_checked_against_its_goal():
    assert "goal >= 0.95 met" in Figure("rate", "x", (0.5, 0.96, 0.99), at_least=0.95).line()
    assert "goal >= 0.95 MISSED" in Figure("rate", "x", (0.94, 0.9, 0.99), at_least=0.95).line()
    assert "goal <= 1.2 met" in Figure("cost", "x", (1.2,), at_most=1.2).line()
    assert "goal <= 1.2 MISSED" in Figure("cost", "x", (1.1, 1.5), at_most=1.2).line()
    assert Figure("size", "MB", (2.0, 1.0, 4.0)).line().split() == ["size", "2", "MB", "(1", "to", "4)"]


def test_the_last_line_has_the_ratios_and_what_has_a_goal(capsys: pytest.CaptureFixture[str]):
    figures = Figures("pairs")
    figures.add("left", [2.0, 9.0], "s", at_least=6.0)
    figures.add("right", [1.0, 3.0], "s")
    figures.add_ratio("left", "right", at_most=3.0)
    figures.summarise()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "summary pairs: left 5.5 s (goal >= 6 MISSED); left / right 2.5 (goal <= 3 met); load "
    )


def test_models_are_told_apart_by_their_prefix(capsys: pytest.CaptureFixture[str]):
    figures = Figures("models")
    for prefix, seconds in (("small: ", 1.0), ("large: ", 4.0)):
        figures.prefix = prefix
        figures.add_all([{"copy": seconds, "write": 2.0}], "ms", scale=1000.0)
        figures.add_ratio("copy", "write")
    figures.summarise()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("summary models: small: copy / write 0.5; large: copy / write 2; load ")


def test_figures_show_three_digits_and_all_before_the_point():
    assert [shown(value) for value in (1234.56, 100.0, 99.49, 0.012345, 0.0)] == [
        "1235",
        "100",
        "99.5",
        "0.0123",
        "0",
    ]


def test_figures_are_seen_while_a_cluster_writes_into_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    figures = Figures("play")
    with output_to_file(tmp_path / "driver.log"):
        print("a library's words")
        figures.add("step", [2.0], "ms")
    printed = capsys.readouterr().out
    assert "2 ms" in printed and "a library's words" not in printed
    assert (tmp_path / "driver.log").read_text() == "a library's words\n"

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from webshop_helpers import task_with_two_options

from envs.webshop.oracle import plan
from envs.webshop.provider import make_provider
from tools.play import main as play

REPOSITORY = Path(__file__).resolve().parents[2]


def played(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: list[str], *arguments: str
) -> list[str]:
    """What the terminal shows for these lines of input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert play(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_plan_typed_in_buys_the_product(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = make_provider({})
    task = task_with_two_options(provider, "valid")
    goal = provider.goal(task.task_id)
    actions = plan(provider.shop, goal)
    shown = played(monkeypatch, capsys, list(actions), "webshop", "--split", "valid", "--task", task.task_id)
    assert f"Task: {goal.instruction_text}" in shown
    assert shown[-1] == f"solved after {len(actions)} steps: reward 10, task_score 1"
    assert f"You did: {actions[0]}; {actions[1]}" in shown


def test_numbers_stand_for_actions_and_ask_for_what_is_left_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["1", "pasta sauce", "99", "2", "history", "dance", "quit", "never read"]
    shown = played(monkeypatch, capsys, lines, "webshop", "--seed", "1")
    assert "1  search[<your query>]" in shown and any(line.endswith("2  click[next >]") for line in shown)
    assert any("> your query: " in line for line in shown)
    assert any("There is no action 99" in line for line in shown)
    assert [line for line in shown if line.startswith("   > ")] == [
        "   > search[pasta sauce]",
        "   > click[next >]",
    ]
    assert "'dance' is not an admissible action here: nothing happened." in shown
    assert shown[-1].startswith("left unfinished after 3 steps: reward 0")


def test_a_game_ends_with_the_input_and_the_same_seed_draws_the_same_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = played(monkeypatch, capsys, ["look"], "alfworld", "--seed", "3", "max_receptacles=6")
    assert first[-1] == "left unfinished after 1 steps: reward 0"
    assert first == played(monkeypatch, capsys, ["look"], "alfworld", "--seed", "3", "max_receptacles=6")
    limited = played(monkeypatch, capsys, ["look"] * 9, "alfworld", "--seed", "3", "--max-steps", "4")
    assert limited[-1] == "left unfinished after 4 steps: reward 0"


@pytest.mark.parametrize("environment", ["alfworld", "webshop"])
def test_it_plays_in_a_process_of_its_own_with_piped_input(environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.play", environment, "--seed", "0"],
        input="1\nquit\n",
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{environment}, task ") and "Step 1" in done.stdout
    assert "left unfinished" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alfwurld"], "unknown environment"),
        (["webshop", "--split", "valid_seen"], "unknown split"),
        (["webshop", "--task", "B0"], "no task 'B0' in split 'train'"),
        (["webshop", "catalogue"], "'catalogue' is no key=value"),
        (["webshop", "catalogue=medium"], "env.args.catalogue"),
    ],
)
def test_what_cannot_be_played_is_told(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(arguments) == 2
    assert words in capsys.readouterr().err

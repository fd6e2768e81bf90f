from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from alfworld_small_game import TRAJ_DATA, problem, walk, write_trial

from envs.alfworld.engine import Engine
from envs.alfworld.game import GameDataError, load_game, package_logic
from envs.alfworld.tasks import goal_sentences

MANY_CHOICES = "(or (isHot Mug_bar__plus_01) (isCool Mug_bar__plus_01)) " * 12


def write_game_file(folder: Path, sentence: str) -> None:
    logic = package_logic()
    assert logic is not None
    grammar = logic.grammar.replace("UNKNOWN GOAL", sentence)
    stored = {"pddl_domain": logic.domain, "grammar": grammar, "pddl_problem": "", "solvable": True}
    (folder / "game.tw-pddl").write_text(json.dumps(stored))


def test_the_task_is_the_game_files_else_one_of_the_goals_sentences(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "pick_and_place_simple-Apple-None-Desk-1" / "trial_1")
    assert goal_sentences(TRAJ_DATA) == ("put a apple in desk", "put some apple on desk")
    game = load_game(folder)
    assert game.trial == "pick_and_place_simple-Apple-None-Desk-1/trial_1"
    assert game.task_description in goal_sentences(TRAJ_DATA)
    assert load_game(folder).task_description == game.task_description
    write_game_file(folder, "bring me an apple")
    assert load_game(folder).task_description == "bring me an apple"
    assert Engine(load_game(folder)).reset().observation.endswith("Your task is to: bring me an apple.")


def test_without_the_package_the_rules_come_from_the_game_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_trial(tmp_path / "task" / "trial")
    write_game_file(folder, "bring me an apple")
    expected = walk(load_game(folder), 3)
    monkeypatch.setattr("envs.alfworld.game.package_logic", lambda: None)
    assert walk(load_game(folder), 3) == expected
    (folder / "game.tw-pddl").unlink()
    with pytest.raises(GameDataError, match="needs the alfworld package"):
        load_game(folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("initial_state.pddl", None, "No such file"),
        ("traj_data.json", None, "No such file"),
        ("traj_data.json", "{", "not JSON"),
        ("traj_data.json", '{"task_type": "dance"}', "'dance' is none of pick_and_place_simple"),
        ("traj_data.json", '{"task_type": "pick_and_place_simple"}', "pddl_params is missing"),
        ("initial_state.pddl", "(define (problem small)", "ends before its last"),
        ("initial_state.pddl", "(" * 101 + ")" * 101, "more than 100 parentheses"),
        ("initial_state.pddl", problem(f"(and {MANY_CHOICES})"), "more than 1000 alternatives"),
        ("initial_state.pddl", "hello", "does not begin with"),
        ("initial_state.pddl", "(define (problem small) (:objects a - agent))", "lacks :init, :goal"),
        ("initial_state.pddl", problem("(glows Desk_bar__plus_01)"), "undeclared predicate 'glows'"),
        ("initial_state.pddl", problem("(opened)"), "takes 1 arguments, not 0"),
        (
            "initial_state.pddl",
            problem("(and)", "(opened Piano_bar_1)"),
            "'piano_bar_1', which is not declared",
        ),
        ("game.tw-pddl", "[]", "not a JSON object"),
        ("game.tw-pddl", "{}", "lacks pddl_domain or grammar"),
    ],
)
def test_damaged_files_are_named_with_the_reason(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    folder = write_trial(tmp_path / "task" / "trial")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(GameDataError, match=re.escape(reason)) as caught:
        load_game(folder)
    assert str(folder) in str(caught.value)


def test_a_grammar_nested_without_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.alfworld.game.package_logic", lambda: None)
    folder = write_trial(tmp_path / "task" / "trial")
    write_game_file(folder, "bring me an apple")
    stored = json.loads((folder / "game.tw-pddl").read_text())
    chain = {f"t{at}": [{"rhs": f"#t{at + 1}#"}] for at in range(5000)} | {"t5000": [{"rhs": "end"}]}
    more = f'grammar :: """{json.dumps(chain)}""";'
    stored["grammar"] = stored["grammar"].replace("You open the {r.name}.", "#t0#") + more
    (folder / "game.tw-pddl").write_text(json.dumps(stored))
    with pytest.raises(GameDataError, match="recursion"):
        load_game(folder)

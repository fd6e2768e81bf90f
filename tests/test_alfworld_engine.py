from __future__ import annotations

import json
import lzma
import random
import re
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import Game, GameDataError, build_game, load_game, package_logic
from envs.alfworld.tasks import goal_sentences
from envs.alfworld.textworld_engine import MissingTextWorldError, TextWorldEngine
from tools.replay import main as replay_main
from tools.replay import read_traces

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "alfworld"

PLACES = {
    "Desk_bar__plus_01": ("Desk", "loc_bar_1"),
    "Fridge_bar__plus_01": ("Fridge", "loc_bar_2"),
    "Microwave_bar__plus_01": ("Microwave", "loc_bar_3"),
    "Shelf_bar__plus_01": ("Shelf", "loc_bar_5"),
    "Shelf_bar__plus_02": ("Shelf", "loc_bar_5"),
    "Sink_bar__plus_01_bar_SinkBasin": ("SinkBasin", "loc_bar_4"),
}
THINGS = {
    "Apple_bar__minus_01": ("Apple", "Fridge_bar__plus_01"),
    "Apple_bar__plus_01": ("Apple", "Shelf_bar__plus_01"),
    "DeskLamp_bar__plus_01": ("DeskLamp", "Desk_bar__plus_01"),
    "Knife_bar__plus_01": ("Knife", "Shelf_bar__plus_01"),
    "Mug_bar__plus_01": ("Mug", "Shelf_bar__plus_02"),
}
FACTS = """
    (atLocation agent1 loc_bar_0)
    (openable Fridge_bar__plus_01) (openable Microwave_bar__plus_01)
    (pickupable Apple_bar__minus_01) (pickupable Apple_bar__plus_01) (pickupable Knife_bar__plus_01)
    (pickupable Mug_bar__plus_01) (isReceptacleObject Mug_bar__plus_01) (toggleable DeskLamp_bar__plus_01)
    (cleanable Apple_bar__minus_01) (heatable Apple_bar__minus_01) (coolable Apple_bar__minus_01)
    (sliceable Apple_bar__minus_01) (sliceable Apple_bar__plus_01)
"""
APPLE_ON_DESK = (
    "(exists (?r - receptacle ?o - object) (and (inReceptacle ?o ?r) (objectType ?o AppleType) {}))"
)
HOLD_APPLE_IN_LIGHT = """(and
    (exists (?lamp - object ?r - receptacle ?a - agent ?l - location) (and (isToggled ?lamp)
        (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?lamp ?r)))
    (exists (?o - object ?a - agent) (and (objectType ?o AppleType) (holds ?a ?o))))"""
TWO_APPLES_ON_DESK = """(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 AppleType)
    (receptacleType ?r DeskType) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and
    (not (= ?o1 ?o2)) (objectType ?o2 AppleType) (inReceptacle ?o2 ?r))))))"""
TRAJ_DATA: dict[str, Any] = {
    "task_type": "pick_and_place_simple",
    "pddl_params": {
        "object_target": "Apple",
        "parent_target": "Desk",
        "toggle_target": "",
        "object_sliced": False,
    },
}


def problem(goal: str, facts: str = "") -> str:
    kinds = sorted({kind for kind, _ in THINGS.values()})
    places = sorted({kind for kind, _ in PLACES.values()})
    objects = [
        "agent1 - agent",
        " ".join(f"loc_bar_{number}" for number in range(6)) + " - location",
        " ".join(PLACES) + " - receptacle",
        " ".join(THINGS) + " - object",
        " ".join(f"{kind}Type" for kind in kinds) + " - otype",
        " ".join(f"{kind}Type" for kind in places) + " - rtype",
    ]
    init = [f"(receptacleType {name} {kind}Type)" for name, (kind, _) in PLACES.items()]
    init += [f"(receptacleAtLocation {name} {location})" for name, (_, location) in PLACES.items()]
    init += [f"(objectType {name} {kind}Type)" for name, (kind, _) in THINGS.items()]
    init += [f"(inReceptacle {name} {place})" for name, (_, place) in THINGS.items()]
    init += [f"(objectAtLocation {name} {PLACES[place][1]})" for name, (_, place) in THINGS.items()]
    init += [f"(canContain {place}Type {kind}Type)" for place in places for kind in kinds]
    return (
        f"(define (problem small) (:domain alfred) (:objects {' '.join(objects)})\n"
        f"(:init {FACTS} {' '.join(init)} {facts}) (:goal {goal}))"
    )


def small_game(goal: str = APPLE_ON_DESK.format("(receptacleType ?r DeskType)"), facts: str = "") -> Game:
    return build_game("task/trial", problem(goal, facts), TRAJ_DATA, "put some apple on desk")


def play(engine: Engine | TextWorldEngine, *commands: str) -> Frame:
    frame = engine.reset()
    for command in commands:
        frame = engine.step(command)
    return frame


def said(*commands: str, facts: str = "") -> str:
    return play(Engine(small_game(facts=facts)), *commands).observation


TAKE_COLD_APPLE = ("go to fridge 1", "open fridge 1", "take apple 2 from fridge 1")


def test_the_opening_lists_receptacles_by_id_and_the_smallest_id_has_the_highest_number() -> None:
    frame = Engine(small_game()).reset()
    assert frame.observation == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
        "you see a desk 1, a fridge 1, a microwave 1, a shelf 2, a shelf 1, and a sinkbasin 1.\n\n"
        "Your task is to: put some apple on desk."
    )
    assert frame.admissible_commands == [
        "go to desk 1",
        "go to fridge 1",
        "go to microwave 1",
        "go to shelf 1",
        "go to shelf 2",
        "go to sinkbasin 1",
        "help",
        "inventory",
        "look",
    ]
    assert (frame.won, frame.done, frame.score) == (False, False, 0)


def test_looking_at_the_start_shows_nothing() -> None:
    assert said("look") == "You are in the middle of a room. Looking quickly around you, you see nothing."


def test_one_arrives_at_a_receptacle_and_sees_what_is_on_it_in_order_of_ids() -> None:
    assert said("go to shelf 2") == "You arrive at shelf 2. On the shelf 2, you see a apple 1, and a knife 1."
    assert said("go to fridge 1") == "You arrive at fridge 1. The fridge 1 is closed."
    opened = "You open the fridge 1. The fridge 1 is open. In it, you see a apple 2."
    assert said("go to fridge 1", "open fridge 1") == opened
    assert said("go to sinkbasin 1") == "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing."


def test_going_to_a_receptacle_at_ones_own_place_is_not_admissible() -> None:
    frame = play(Engine(small_game()), "go to shelf 1")
    assert {"examine shelf 1", "examine shelf 2", "take mug 1 from shelf 1"} <= set(frame.admissible_commands)
    assert not {"go to shelf 1", "go to shelf 2"} & set(frame.admissible_commands)
    assert said("go to shelf 1", "go to shelf 2") == "Nothing happens."


def test_commands_may_have_white_space_around_them_but_not_other_case() -> None:
    assert said("  look \n") == said("look")
    for command in (
        "LOOK",
        "Look",
        "go  to desk 1",
        "go to desk 1.",
        "",
        " ",
        "go to",
        "{r}",
        "examine agent1",
    ):
        assert said(command) == "Nothing happens."


def test_help_has_no_newline_at_its_beginning_but_one_at_its_end() -> None:
    text = said("help")
    assert text.startswith("Available commands:\n  look:                             look around")
    assert text.endswith("slice an object using a sharp object\n")


def test_only_a_held_object_can_be_examined() -> None:
    frame = play(Engine(small_game()), "go to shelf 1")
    assert "examine mug 1" not in frame.admissible_commands
    assert said("go to shelf 1", "examine mug 1") == "Nothing happens."
    examined = said("go to shelf 1", "take mug 1 from shelf 1", "examine mug 1")
    assert examined == "This is a normal mug 1. In it, you see nothing."
    knife = said("go to shelf 1", "take knife 1 from shelf 2", "examine knife 1")
    assert knife == "There's nothing special about knife 1."


def test_one_hand_holds_one_object() -> None:
    engine = Engine(small_game())
    frame = play(engine, "go to shelf 1", "take mug 1 from shelf 1")
    assert engine.step("inventory").observation == "You are carrying: a mug 1."
    assert not any(command.startswith("take") for command in frame.admissible_commands)
    assert {"move mug 1 to shelf 1", "move mug 1 to shelf 2"} <= set(frame.admissible_commands)
    assert engine.held_object == "mug_bar__plus_01"
    assert said("inventory") == "You are not carrying anything."


def test_heating_cooling_and_cleaning_need_the_place_but_no_open_door() -> None:
    engine = Engine(small_game())
    play(engine, *TAKE_COLD_APPLE, "close fridge 1")
    assert engine.step("heat apple 2 with microwave 1").observation == "Nothing happens."
    assert engine.step("cool apple 2 with fridge 1").observation == "You cool the apple 2 using the fridge 1."
    assert engine.step("examine apple 2").observation == "This is a cold apple 2."
    engine.step("go to microwave 1")
    assert (
        engine.step("heat apple 2 with microwave 1").observation
        == "You heat the apple 2 using the microwave 1."
    )
    assert engine.step("examine apple 2").observation == "This is a hot apple 2."
    engine.step("go to sinkbasin 1")
    assert (
        engine.step("clean apple 2 with sinkbasin 1").observation
        == "You clean the apple 2 using the sinkbasin 1."
    )
    assert engine.step("examine apple 2").observation == "This is a hot and clean apple 2."
    assert engine.holds("ishot", "apple_bar__minus_01") and not engine.holds("iscool", "apple_bar__minus_01")


def test_slicing_needs_a_knife_in_hand_and_the_object_at_ones_place() -> None:
    engine = Engine(small_game())
    frame = play(engine, "go to shelf 1", "take knife 1 from shelf 2")
    assert "slice apple 1 with knife 1" in frame.admissible_commands
    assert "slice apple 2 with knife 1" not in frame.admissible_commands
    assert engine.step("slice apple 1 with knife 1").observation == "You sliced the apple 1 with the knife 1."
    engine.step("move knife 1 to shelf 1")
    engine.step("take apple 1 from shelf 2")
    assert engine.step("examine apple 1").observation == "This is a sliced apple 1."


def test_a_lamp_is_turned_on_every_time_it_is_used() -> None:
    lit = "You turn on the desklamp 1."
    assert said("go to desk 1", "use desklamp 1") == lit
    assert said("go to desk 1", "use desklamp 1", "use desklamp 1") == lit


def test_what_was_moved_between_receptacles_at_one_place_lies_next_to_the_other() -> None:
    moved = ("go to shelf 1", "take mug 1 from shelf 1", "move mug 1 to shelf 2", "look")
    assert said(*moved) == "You are facing the shelf 2, and shelf 1. Next to it, you see a mug 1."
    assert (
        said("go to shelf 1", "look")
        == "You are facing the shelf 2, and shelf 1. Next to it, you see nothing."
    )


def test_an_object_in_two_receptacles_is_taken_from_one() -> None:
    both = "(inReceptacle Mug_bar__plus_01 Sink_bar__plus_01_bar_SinkBasin)"
    engine = Engine(small_game(facts=both))
    play(engine, "go to shelf 1", "take mug 1 from shelf 1")
    on_sink = "You arrive at sinkbasin 1. On the sinkbasin 1, you see a mug 1."
    assert engine.step("go to sinkbasin 1").observation == on_sink
    assert engine.contents("sink_bar__plus_01_bar_sinkbasin") == ["mug_bar__plus_01"]


def test_the_game_goes_on_after_a_win_and_taking_the_object_back_undoes_it() -> None:
    engine = Engine(small_game())
    won = play(engine, *TAKE_COLD_APPLE, "go to desk 1", "move apple 2 to desk 1")
    assert (won.observation, won.won, won.done, won.score) == (
        "You move the apple 2 to the desk 1.",
        True,
        True,
        1,
    )
    assert engine.step("xyzzy").won
    undone = engine.step("take apple 2 from desk 1")
    assert (undone.won, undone.done, undone.score) == (False, False, 0)


def test_two_objects_must_be_two() -> None:
    engine = Engine(small_game(TWO_APPLES_ON_DESK))
    one = play(engine, *TAKE_COLD_APPLE, "go to desk 1", "move apple 2 to desk 1")
    assert not one.won
    for command in ("go to shelf 1", "take apple 1 from shelf 2", "go to desk 1", "move apple 1 to desk 1"):
        frame = engine.step(command)
    assert frame.won


def test_examining_in_the_light_needs_lamp_and_object_at_once() -> None:
    engine = Engine(small_game(HOLD_APPLE_IN_LIGHT))
    assert not play(engine, "go to desk 1", "use desklamp 1", *TAKE_COLD_APPLE).won
    assert engine.step("go to desk 1").won


def test_a_goal_can_ask_for_every_receptacle_to_be_closed() -> None:
    desk = APPLE_ON_DESK.format("(receptacleType ?r DeskType)")
    engine = Engine(small_game(f"(and {desk} (forall (?re - receptacle) (not (opened ?re))))"))
    assert not play(engine, *TAKE_COLD_APPLE, "go to desk 1", "move apple 2 to desk 1").won
    engine.step("go to fridge 1")
    assert engine.step("close fridge 1").won
    assert engine.satisfies(engine.game.goal)


def test_a_copy_goes_its_own_way() -> None:
    engine = Engine(small_game())
    play(engine, "go to shelf 1")
    copy = engine.copy()
    copy.step("take mug 1 from shelf 1")
    assert (copy.held_object, engine.held_object) == ("mug_bar__plus_01", None)
    assert (
        engine.step("take mug 1 from shelf 1") == copy.copy().reset()
        or engine.held_object == copy.held_object
    )


def walk(game: Game, seed: int) -> list[Frame]:
    chooser = random.Random(seed)
    engine = Engine(game)
    frames = [engine.reset()]
    for _ in range(60):
        frames.append(engine.step(chooser.choice(frames[-1].admissible_commands)))
    return frames


def test_episodes_of_one_game_in_many_threads_give_the_same_answers_as_alone() -> None:
    alone = [walk(small_game(), seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(walk, [small_game()] * 24, range(24)))
    assert together == alone


def test_an_episode_takes_less_than_a_megabyte() -> None:
    game = small_game()
    walk(game, 0)
    tracemalloc.start()
    engine = Engine(game)
    for seed in range(200):
        engine.step(random.Random(seed).choice(list(engine.admissible_actions)))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1 << 20


def write_trial(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "initial_state.pddl").write_text(problem(TWO_APPLES_ON_DESK))
    (folder / "traj_data.json").write_text(json.dumps(TRAJ_DATA))
    return folder


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


def test_the_original_engine_gives_the_same_answers_or_says_what_to_install() -> None:
    game = small_game(facts="(inReceptacle Mug_bar__plus_01 Sink_bar__plus_01_bar_SinkBasin)")
    try:
        original = TextWorldEngine(game)
    except MissingTextWorldError as error:
        assert "pip install textworld" in str(error)
        return
    chooser = random.Random(0)
    engine = Engine(game)
    frame = engine.reset()
    assert original.reset() == frame
    for _ in range(60):
        command = chooser.choice([*frame.admissible_commands, frame.admissible_commands[0].upper()])
        frame = engine.step(command)
        assert original.step(command) == frame
    original.close()


def lay_out_traced_games(traces: Path, data: Path) -> None:
    wanted = {f"json_2.1.1/{trace['trial']}" for trace in read_traces(traces)}
    for split in sorted({trial.split("/")[1] for trial in wanted}):
        with tarfile.open(SHARED / f"alfworld_{split}.tar.xz") as pack:
            for member in pack:
                content = pack.extractfile(member)
                if str(Path(member.name).parent) in wanted and content is not None:
                    target = data / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared ALFWorld games are not beside the project")
def test_all_recorded_steps_of_the_original_engine_replay_without_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = SHARED / "traces.jsonl.xz"
    lay_out_traced_games(traces, tmp_path)
    monkeypatch.setattr("sys.argv", ["replay", "alfworld", str(traces), "--data", str(tmp_path)])
    assert replay_main() == 0
    assert capsys.readouterr().out == "46 passed, 0 failed\n"


def record(game: Game, trial: str) -> dict[str, Any]:
    engine = Engine(game)
    steps = [{"command": None, "observation": engine.reset().observation}]
    steps.append({"command": "look", "observation": engine.step("look").observation})
    return {"trial": trial, "steps": steps}


def replay(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["replay", "alfworld", *map(str, arguments)])
    return replay_main()


def test_replay_counts_and_shows_the_first_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = "train/task/trial"
    good = record(load_game(write_trial(tmp_path / "json_2.1.1" / trial)), trial)
    bad = json.loads(json.dumps(good))
    bad["steps"][1]["observation"] = "You see stars."
    traces = tmp_path / "traces.jsonl.xz"
    traces.write_bytes(lzma.compress("\n".join(map(json.dumps, [good, bad, good])).encode()))
    assert replay(monkeypatch, traces, "--data", tmp_path) == 1
    *differences, last = capsys.readouterr().out.splitlines()
    assert last == "2 passed, 1 failed"
    assert len(differences) == 1 and "step 1, command 'look'" in differences[0]
    assert "recorded was 'You see stars.'" in differences[0]


def test_replay_says_in_one_sentence_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = tmp_path / "traces.jsonl"
    damaged = tmp_path / "traces.jsonl.xz"
    damaged.write_bytes(b"not xz")
    trace = {"trial": "train/a/b", "steps": [{"command": None, "observation": ""}]}
    cases: list[tuple[str, tuple[object, ...], str]] = [
        ("", (traces,), "Say where the data is: give --data, or set ALFWORLD_DATA."),
        ("", (traces, "--data", tmp_path / "none"), "is not a folder."),
        ("", (traces, "--data", tmp_path), "it holds no traces."),
        ("{", (traces, "--data", tmp_path), "line 1: it is not JSON"),
        ('{"trial": "a"}', (traces, "--data", tmp_path), "it has no 'steps'."),
        (json.dumps(trace), (traces, "--data", tmp_path), "Cannot load the game of train/a/b"),
        ("", (damaged, "--data", tmp_path), "it is damaged"),
        ("", (tmp_path / "gone.jsonl", "--data", tmp_path), "No such file"),
    ]
    for content, arguments, sentence in cases:
        traces.write_text(content)
        assert replay(monkeypatch, *arguments) == 2
        printed = capsys.readouterr().err
        assert sentence in printed and printed.count("\n") == 1

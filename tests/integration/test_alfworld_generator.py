"""Generated games, their pack, and the pack that ships."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from envs.alfworld.engine import Engine
from envs.alfworld.game import GameDataError, load_game
from envs.alfworld.generator.description import (
    Furniture,
    GameDescription,
    Goal,
    PlacedObject,
    encode_id,
    encode_location,
    from_json,
    to_json,
)
from envs.alfworld.generator.generate import GenerationError, SplitPlan, generate_splits, size_sequence
from envs.alfworld.generator.package_data import PackageData, read_package_data
from envs.alfworld.generator.problem import problem_pddl
from envs.alfworld.oracle import plan
from envs.alfworld.pack import GamePack, PackError, embedded_pack, write_pack
from envs.alfworld.tasks import TASK_TYPES
from tools.make_alfworld_games import Prover, main

SHARES = {"small": 1.0, "large": 1.0}


@pytest.fixture(scope="module")
def data() -> PackageData:
    return read_package_data()


@pytest.fixture(scope="module")
def games(data: PackageData) -> dict[str, list[GameDescription]]:
    plans = {"train": SplitPlan(24, SHARES), "valid_seen": SplitPlan(12, SHARES)}
    return generate_splits(data, plans, seed=3, solvable=Prover(data.rules))


def two_drawer_room(start: int = 0) -> GameDescription:
    """A watch in a closed drawer and an empty desk in reach from elsewhere."""
    return GameDescription(
        goal=Goal("pick_and_place_simple", "Watch", parent="Desk"),
        size="small",
        floor_plan=301,
        start=(0, 0, start, 30),
        furniture=(
            Furniture("Desk", (119, 0, -130), (2, 5, 1, 60)),
            Furniture("Drawer", (113, 40, 174), (0, 5, 1, 60)),
        ),
        objects=(PlacedObject("Watch", (110, 45, 170), 1),),
    )


def test_ids_are_written_as_alfred_writes_them():
    assert encode_id("Cabinet", (-27, 201, 0)) == (
        "Cabinet_bar__minus_00_dot_27_bar__plus_02_dot_01_bar__plus_00_dot_00"
    )
    assert encode_location((2, -3, 1, -30)) == "loc_bar_2_bar__minus_3_bar_1_bar__minus_30"
    sink = Furniture("SinkBasin", (5, 90, -65), (1, 0, 2, 60))
    assert sink.symbol == "Sink_bar__plus_00_dot_05_bar__plus_00_dot_90_bar__minus_00_dot_65_bar_SinkBasin"


def test_a_description_survives_json_and_its_id_follows_its_content():
    room = two_drawer_room()
    assert from_json(to_json(room)) == room
    assert room.trial.startswith("pick_and_place_simple-Watch-None-Desk-301/trial_")
    assert two_drawer_room(start=1).trial != room.trial
    assert two_drawer_room(start=1).content_key == room.content_key


def test_a_hand_made_description_plays_as_written(tmp_path: Path, data: PackageData):
    write_pack(tmp_path / "one.xz", {"train": [two_drawer_room()]}, data.rules)
    pack = GamePack.open(tmp_path / "one.xz")
    engine = Engine(pack.load(pack.task_ids("train")[0]))
    frame = engine.reset()
    assert "you see a desk 1, and a drawer 1." in frame.observation
    assert engine.step("go to drawer 1").observation == "You arrive at drawer 1. The drawer 1 is closed."
    assert engine.step("open drawer 1").observation == (
        "You open the drawer 1. The drawer 1 is open. In it, you see a watch 1."
    )
    engine.step("take watch 1 from drawer 1")
    engine.step("go to desk 1")
    assert engine.step("move watch 1 to desk 1").won


def test_every_split_has_its_numbers_and_all_task_types(games: dict[str, list[GameDescription]]):
    assert {split: len(made) for split, made in games.items()} == {"train": 24, "valid_seen": 12}
    assert Counter(game.goal.task_type for game in games["train"]) == dict.fromkeys(TASK_TYPES, 4)
    assert Counter((game.size, game.goal.task_type) for game in games["train"]) == {
        (size, task_type): 2 for size in SHARES for task_type in TASK_TYPES
    }


def test_no_two_games_read_alike(games: dict[str, list[GameDescription]]):
    keys = [game.content_key for made in games.values() for game in made]
    assert len(set(keys)) == len(keys)


def test_small_rooms_have_four_to_six_receptacles_and_large_ones_at_least_eighteen(
    games: dict[str, list[GameDescription]],
):
    counts = {size: [len(game.furniture) for game in games["train"] if game.size == size] for size in SHARES}
    assert 4 <= min(counts["small"]) and max(counts["small"]) <= 6
    assert min(counts["large"]) >= 18


def test_objects_lie_only_where_the_affordances_allow(
    data: PackageData, games: dict[str, list[GameDescription]]
):
    for game in games["train"]:
        for placed in game.objects:
            home = game.furniture[placed.receptacle].type
            assert placed.type == "DeskLamp" or placed.type in data.rules.can_contain[home]


def test_the_goal_is_never_met_by_the_first_room(games: dict[str, list[GameDescription]]):
    for game in games["train"]:
        homes = [
            game.furniture[item.receptacle].type for item in game.objects if item.type == game.goal.object
        ]
        assert homes and game.goal.parent not in homes


def test_held_out_floor_plans_are_not_those_of_training(data: PackageData):
    train = {item.number for item in data.train_plans}
    unseen = {item.number for item in data.unseen_plans}
    assert len(train) == 96 and len(unseen) == 24 and not train & unseen


def test_the_same_seed_gives_the_same_bytes_in_processes_with_other_hash_seeds(tmp_path: Path):
    contents = []
    for hash_seed in ("1", "2"):
        out = tmp_path / f"games{hash_seed}.xz"
        command = [sys.executable, "-m", "tools.make_alfworld_games", "--out", str(out), "--seed", "5"]
        subprocess.run(
            [*command, "--train", "12", "--heldout", "6"],
            check=True,
            timeout=120,
            cwd=Path(__file__).resolve().parents[2],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        )
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_another_seed_gives_other_games(data: PackageData):
    def trials(seed: int) -> list[str]:
        plans = {"train": SplitPlan(6, {"small": 1.0})}
        return [game.trial for game in generate_splits(data, plans, seed, lambda game: True)["train"]]

    assert not set(trials(0)) & set(trials(1))


def test_a_folder_holds_the_same_games_as_a_pack(tmp_path: Path):
    arguments = ["--seed", "2", "--heldout", "6", "--sizes", "small=1"]
    assert main(["--out", str(tmp_path / "pack.xz"), *arguments]) == 0
    assert main(["--out", str(tmp_path / "folder"), *arguments]) == 0
    pack = GamePack.open(tmp_path / "pack.xz")
    assert pack.splits() == ("valid_seen",)
    for task_id in pack.task_ids("valid_seen"):
        game = load_game(tmp_path / "folder" / "json_2.1.1" / "valid_seen" / task_id)
        assert Engine(game).reset() == Engine(pack.load(task_id)).reset()
        assert plan(game) == plan(pack.load(task_id))


def test_generation_that_runs_out_of_games_says_so(data: PackageData):
    with pytest.raises(GenerationError, match="no new small game of pick_and_place_simple"):
        generate_splits(data, {"train": SplitPlan(1, {"small": 1.0})}, 0, lambda game: False)


def test_sizes_are_dealt_in_their_shares():
    assert size_sequence(10, {"small": 7, "medium": 2, "large": 1}).count("small") == 7
    with pytest.raises(ValueError, match="unknown room size 'huge'"):
        size_sequence(3, {"huge": 1})


@pytest.mark.parametrize(
    "arguments", [["--train", "0"], ["--train", "3", "--sizes", "tiny=1"], ["--train", "-1"]]
)
def test_wrong_arguments_end_with_status_2(arguments: list[str], tmp_path: Path):
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "x.xz"), *arguments])
    assert stopped.value.code == 2


def test_a_game_twice_in_a_pack_is_refused(tmp_path: Path, data: PackageData):
    with pytest.raises(ValueError, match="is in the pack twice"):
        write_pack(
            tmp_path / "x.xz", {"train": [two_drawer_room()], "valid_seen": [two_drawer_room()]}, data.rules
        )


def test_damaged_packs_are_named_with_the_reason(tmp_path: Path, data: PackageData):
    path = tmp_path / "pack.xz"
    write_pack(path, {"train": [two_drawer_room()]}, data.rules)
    whole = path.read_bytes()
    lines = lzma.decompress(whole).decode().splitlines()
    header = json.loads(lines[0]) | {"format": "other/9"}
    for content, reason in (
        (whole[:100], "not an xz-compressed text"),
        (lzma.compress(b""), "its header does not read"),
        (lzma.compress(json.dumps(header).encode()), "format 'other/9'"),
        (lzma.compress(lines[0].encode()), "the index names 1 games, the file holds 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(PackError, match=reason):
            GamePack.open(path)


def test_a_number_beyond_any_place_in_a_room_is_told_with_the_game(tmp_path: Path, data: PackageData):
    path = tmp_path / "pack.xz"
    room = two_drawer_room()
    write_pack(path, {"train": [room]}, data.rules)
    header, line = lzma.decompress(path.read_bytes()).decode().splitlines()
    game = json.loads(line)
    game["furniture"][0][1] = 10**400
    path.write_bytes(lzma.compress(f"{header}\n{json.dumps(game)}\n".encode()))
    with pytest.raises(GameDataError, match=f"{room.trial}: .* does not read: OverflowError"):
        GamePack.open(path).load(room.trial)


def test_fingerprints_follow_content_and_rules(tmp_path: Path, data: PackageData):
    def fingerprint(room: GameDescription, sliceable: tuple[str, ...]) -> str:
        path = tmp_path / "pack.xz"
        write_pack(path, {"train": [room]}, replace(data.rules, sliceable=sliceable))
        return GamePack.open(path).fingerprint(room.trial)

    first = fingerprint(two_drawer_room(), ("Apple",))
    assert first == fingerprint(two_drawer_room(), ("Apple",)) and len(first) == 64
    assert first != fingerprint(two_drawer_room(), ("Bread",))
    assert first != fingerprint(two_drawer_room(start=1), ("Apple",))


def test_opening_the_embedded_pack_reads_no_game(monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    monkeypatch.setattr("envs.alfworld.pack.from_json", read.append)
    embedded_pack.cache_clear()
    embedded_pack().entries("train")
    assert read == []


def test_the_embedded_pack_is_large_balanced_and_small_on_disk():
    pack = embedded_pack()
    assert pack.splits() == ("train", "valid_seen", "valid_unseen")
    for split, least in (("train", 4000), ("valid_seen", 256), ("valid_unseen", 120)):
        entries = pack.entries(split)
        counts = Counter(entry.task_type for entry in entries)
        assert len(entries) >= least and set(counts) == set(TASK_TYPES)
        assert max(counts.values()) == min(counts.values())
    train = pack.entries("train")
    assert 2 * sum(entry.num_receptacles <= 6 for entry in train) > len(train)
    file = Path(__file__).resolve().parents[2] / "envs" / "alfworld" / "data" / "games.xz"
    assert file.stat().st_size < 3 * 1024 * 1024


def test_the_embedded_splits_share_no_content():
    pack = embedded_pack()
    keys = Counter(
        pack.description(name).content_key for split in pack.splits() for name in pack.task_ids(split)
    )
    assert max(keys.values()) == 1
    train_rooms = {pack.description(name).floor_plan for name in pack.task_ids("train")}
    unseen_rooms = {pack.description(name).floor_plan for name in pack.task_ids("valid_unseen")}
    assert not train_rooms & unseen_rooms


def test_games_of_the_embedded_pack_are_what_the_index_says_and_are_solved_in_few_steps():
    pack = embedded_pack()
    for task_id in pack.task_ids("valid_seen")[::25]:
        entry, description, game = pack.entry(task_id), pack.description(task_id), pack.load(task_id)
        assert game.trial == task_id == description.trial
        assert game.task_type == entry.task_type and len(description.furniture) == entry.num_receptacles
        steps = len(plan(game))
        assert 0 < steps <= (12 if entry.size == "small" else 20)


def test_a_problem_of_the_pack_names_every_receptacle_once():
    pack = embedded_pack()
    description = pack.description(pack.task_ids("train")[0])
    text = problem_pddl(description, read_package_data().rules)
    for item in description.furniture:
        assert text.count(f"{item.symbol} - receptacle\n") == 1
    assert text.count("(") == text.count(")")

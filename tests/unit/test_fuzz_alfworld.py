"""ALFWorld's files with anything lost, doubled or replaced: a game to be played, or damage that is told."""

from __future__ import annotations

import json
import lzma
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alfworld_small_game import write_trial
from fuzzing import damaged_bytes, damaged_json, fuzzed
from hypothesis import given
from hypothesis import strategies as st

from envs.alfworld import game
from envs.alfworld.game import GameDataError, package_logic
from envs.alfworld.game_sources import GameFolder, GameSource
from envs.alfworld.pack import embedded_pack, write_pack
from envs.alfworld.provider import make_provider
from serl.config.yaml_files import is_unicode

TASK = "pick_and_place_simple-Apple-None-Desk-1"
FILES = ("initial_state.pddl", "traj_data.json", "game.tw-pddl")
words = st.sampled_from(
    [
        "(",
        ")",
        "()",
        "and",
        "or",
        "not",
        "exists",
        "forall",
        "imply",
        "=",
        "?x",
        "?r",
        "-",
        "object",
        "agent1",
    ]
    + ["receptacle", ":goal", ":init", "Apple_bar__plus_01", "AppleType", "holds", "inReceptacle", ";", "é"]
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        write_whole(Path(name))
        yield Path(name)


def trial_in(folder: Path) -> Path:
    return folder / "json_2.1.1" / "train" / TASK / "trial"


def write_whole(folder: Path) -> None:
    """One game with all its files, as `alfworld-download` lays it out."""
    trial = write_trial(trial_in(folder))
    logic = package_logic()
    assert logic is not None
    grammar = logic.grammar.replace("UNKNOWN GOAL", "bring me an apple")
    stored = {"pddl_domain": logic.domain, "grammar": grammar, "pddl_problem": "", "solvable": True}
    (trial / "game.tw-pddl").write_text(json.dumps(stored))


@st.composite
def damaged_file(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """Bytes, words of PDDL or values of JSON that are lost or others."""
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    if name != "initial_state.pddl":
        return json.dumps(draw(damaged_json(json.loads(content)))).encode()
    tokens = re.findall(r"[()]|[^\s()]+", content.decode())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(tokens) - 1))
        tokens[at : at + draw(st.integers(0, 2))] = draw(st.lists(words, max_size=2))
    return " ".join(tokens).encode()


def play(provider: Any, task_id: str) -> None:
    env = provider.make_env()
    observation, info = env.reset(options={"task_id": task_id})
    for command in [*info["admissible_actions"][:2], "look", "go to \ud800", ""]:
        assert is_unicode(observation) and is_unicode(info["task_description"])
        observation, _, terminated, _, info = env.step(command)
        if terminated:
            break


def check(source: GameSource, data: Path) -> None:
    """The scan's readable games can be built and played, and no others."""
    scan = source.scan("train")
    assert len(scan.records) + len(scan.damaged) + sum(scan.left_out.values()) == 1
    if not scan.records:
        with pytest.raises(ValueError, match="no game of split 'train' left"):
            make_provider({"data": str(data)}).task_set("train")
        return
    provider = make_provider({"data": str(data)})
    for task in provider.task_set("train").tasks:
        play(provider, task.task_id)


@pytest.mark.parametrize("name", FILES)
@fuzzed(20)
@given(data=st.data())
def test_a_damaged_game_is_told_by_the_scan_or_can_be_played(name: str, folder: Path, data: st.DataObject):
    file = trial_in(folder) / name
    whole = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged_file(name, whole)))
        check(GameFolder(folder), folder)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("rules", ["pddl_domain", "grammar"])
@fuzzed(20)
@given(data=st.data())
def test_damaged_rules_of_a_game_are_told_or_can_be_played(rules: str, folder: Path, data: st.DataObject):
    file = trial_in(folder) / "game.tw-pddl"
    whole = file.read_bytes()
    stored = json.loads(whole)
    damaged = data.draw(damaged_file("initial_state.pddl", stored[rules].encode()))
    try:
        file.write_text(json.dumps(stored | {rules: damaged.decode("utf-8", "replace")}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(game, "package_logic", lambda: None)
            check(GameFolder(folder), folder)
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module")
def packed(folder: Path) -> tuple[dict[str, Any], str]:
    """The header of a pack of one game, and that game's line."""
    path = folder / "one.xz"
    pack = embedded_pack()
    write_pack(path, {"train": [pack.description(pack.task_ids("train")[0])]}, pack._rules)
    header, line = lzma.decompress(path.read_bytes()).decode().splitlines()
    return json.loads(header), line


@fuzzed(20)
@given(data=st.data())
def test_a_damaged_pack_is_refused_or_its_games_are_told_or_played(
    packed: tuple[dict[str, Any], str], folder: Path, data: st.DataObject
):
    header, line = packed
    if data.draw(st.booleans()):
        header = data.draw(damaged_json(header))
    else:
        line = json.dumps(data.draw(damaged_json(json.loads(line))))
    path = folder / "damaged.xz"
    path.write_bytes(lzma.compress(f"{json.dumps(header)}\n{line}\n".encode()))
    play_pack(path)
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    play_pack(path)


def play_pack(path: Path) -> None:
    try:
        provider = make_provider({"data": str(path), "max_receptacles": 50})
        tasks = provider.task_set("train").tasks
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error) or "split 'train'" in str(error)
        return
    for task in tasks:
        try:
            play(provider, task.task_id)
        except GameDataError as error:
            assert task.task_id in str(error)

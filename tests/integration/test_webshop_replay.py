from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recordings import origin, recordings

from envs.webshop.engine import Engine
from envs.webshop.oracle import plan
from tools.make_webshop_catalogue import main as make_catalogue
from tools.prepare_webshop import main as prepare
from tools.replay import main as replay_main
from tools.replay_webshop import open_shop

# Episodes, rewards and searches, and one each for the goals, unreachable goals and prices of seed 0.
NUM_RECORDINGS = {"fixtures": 2 + 9 + 8 + 3, "shared": 3 + 300 + 103 + 3}


def replay(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["replay", "webshop", *map(str, arguments)])
    return replay_main()


@pytest.mark.parametrize("folder", recordings("webshop"), ids=origin)
def test_all_recorded_answers_replay_without_a_difference(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((folder / "fixtures").glob("*.json"))
    assert replay(monkeypatch, *files, "--data", folder) == 0
    assert capsys.readouterr().out == f"{NUM_RECORDINGS[origin(folder)]} passed, 0 failed\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "webshop"
    assert make_catalogue(["--out", str(folder), "--products-per-kind", "1"]) == 0
    return folder


def recorded_episode(data: Path) -> dict[str, Any]:
    shop = open_shop(data)
    goal = shop.goals(human=False).goals[0]
    assert isinstance(goal.options, dict)
    engine = Engine(shop, goal, "3")
    episode: dict[str, Any] = {
        "name": "bought",
        "session": 3,
        "goal": {
            "asin": goal.asin,
            "instruction_text": goal.instruction_text,
            "attributes": list(goal.attributes),
            "price_upper": goal.price_upper,
            "goal_options": goal.options,
        },
        "reset": {"observation": engine.reset().observation, "url": engine.url},
        "steps": [],
    }
    for action in plan(shop, goal):
        frame = engine.step(action)
        step = {
            "action": action,
            "reward": frame.reward,
            "done": frame.done,
            "observation": frame.observation,
        }
        episode["steps"].append(step)
    return episode | {"purchased_asin": goal.asin, "reward": 1.0, "sampled_price": shop.prices[0]}


def test_replay_counts_and_shows_the_first_difference(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = recorded_episode(data)
    bad = json.loads(json.dumps(good)) | {"name": "other"}
    bad["steps"][1]["reward"] = 0.5
    search = {"query": "tea", "hits": [], "scores": []}
    (tmp_path / "episodes.json").write_text(json.dumps([good, bad]))
    (tmp_path / "searches.json").write_text(json.dumps([search]))
    status = replay(monkeypatch, tmp_path / "episodes.json", tmp_path / "searches.json", "--data", data)
    first, second, last = capsys.readouterr().out.splitlines()
    assert (status, last) == (1, "1 passed, 2 failed")
    assert (
        first.startswith("FAILED episodes.json other: step 1, action 'click[") and "recorded was 0.5" in first
    )
    assert second.startswith("FAILED searches.json tea: hits differ")


def test_replay_says_in_one_sentence_what_cannot_be_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {
        "broken.json": ("[{", "it is not JSON"),
        "empty.json": ("[]", "it holds no recordings"),
        "number.json": ("7", "it holds no recordings"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_text(content)
        assert replay(monkeypatch, tmp_path / name, "--data", data) == 2
        assert words in capsys.readouterr().err
    assert replay(monkeypatch, tmp_path / "none.json", "--data", data) == 2
    assert replay(monkeypatch, tmp_path / "none.json", "--data", tmp_path) == 2
    assert replay(monkeypatch, tmp_path / "none.json") == 2
    assert "set WEBSHOP_DATA" in capsys.readouterr().err


def test_a_recording_that_cannot_be_played_fails_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"what": 1}, {"buy": "B1", "goal": {"asin": "B1"}}, 3, recorded_episode(data)]
    (tmp_path / "mixed.json").write_text(json.dumps(records))
    assert replay(monkeypatch, tmp_path / "mixed.json", "--data", data) == 1
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == third.replace("entry 2", "entry 0")
    assert first == "FAILED mixed.json entry 0: it is no episode, reward or search"
    assert second.startswith("FAILED mixed.json entry 1: it cannot be played here: KeyError(")
    assert last == "1 passed, 3 failed"


@pytest.mark.parametrize("prepared", [False, True])
def test_recordings_of_the_full_catalogue_are_played_on_its_files(
    data: Path,
    tmp_path: Path,
    prepared: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "episodes.json").write_text(json.dumps([recorded_episode(data)]))
    (data / "items_shuffle_1000.json").rename(data / "items_shuffle.json")
    (data / "items_ins_v2_1000.json").rename(data / "items_ins_v2.json")
    if prepared:
        assert prepare(["--data", str(data), "--catalogue", "full", "--model", "no_such_model"]) == 0
    assert replay(monkeypatch, tmp_path / "episodes.json", "--data", data) == 0
    assert capsys.readouterr().out == "1 passed, 0 failed\n"

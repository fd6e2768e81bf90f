from __future__ import annotations

import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest
from alfworld_small_game import write_trial
from recordings import origin, recordings

from envs.alfworld.engine import Engine
from envs.alfworld.game import Game, load_game
from tools.replay import main as replay_main
from tools.replay import read_traces

NUM_TRACES = {"fixtures": 5, "shared": 46}


def games_of_traces(folder: Path, traces: Path, scratch: Path) -> Path:
    """The data folder of traced games: `folder` itself, or what is unpacked from its archives."""
    if (folder / "json_2.1.1").is_dir():
        return folder
    wanted = {f"json_2.1.1/{trace['trial']}" for trace in read_traces(traces)}
    for split in sorted({trial.split("/")[1] for trial in wanted}):
        with tarfile.open(folder / f"alfworld_{split}.tar.xz") as pack:
            for entry in pack:
                content = pack.extractfile(entry)
                if str(Path(entry.name).parent) in wanted and content is not None:
                    target = scratch / entry.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
    return scratch


@pytest.mark.parametrize("folder", recordings("alfworld"), ids=origin)
def test_all_recorded_steps_of_the_original_engine_replay_without_a_difference(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (traces,) = folder.glob("traces.jsonl*")
    assert replay(monkeypatch, traces, "--data", games_of_traces(folder, traces, tmp_path)) == 0
    assert capsys.readouterr().out == f"{NUM_TRACES[origin(folder)]} passed, 0 failed\n"


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
        ('{"trial": "a", "steps": [{}]}', (traces, "--data", tmp_path), "a step has no 'observation'."),
        (json.dumps(trace), (traces, "--data", tmp_path), "Cannot load the game of train/a/b"),
        ("", (damaged, "--data", tmp_path), "it is damaged"),
        ("", (tmp_path / "gone.jsonl", "--data", tmp_path), "No such file"),
    ]
    for content, arguments, sentence in cases:
        traces.write_text(content)
        assert replay(monkeypatch, *arguments) == 2
        printed = capsys.readouterr().err
        assert sentence in printed and printed.count("\n") == 1

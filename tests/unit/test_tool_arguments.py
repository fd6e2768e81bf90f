"""What tools refuse before they work for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.credit.__main__ import main as credit
from tools.curve import main as curve
from tools.report.__main__ import main as report
from tools.warm_start.__main__ import main as warm_start

MODEL = "embedded:nothing"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--episodes", "0", "argument --episodes: 0 is not positive"),
        ("--batch-size", "0", "argument --batch-size: 0 is not positive"),
        ("--lr", "nan", "argument --lr: nan is no positive number"),
        ("--lr", "inf", "argument --lr: inf is no positive number"),
        ("--detour-share", "2", "argument --detour-share: 2.0 is no share, from 0 to 1"),
    ],
)
def test_numbers_that_nothing_can_be_trained_with_are_refused_at_once(
    option: str, value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        warm_start(["--out", str(tmp_path), option, value])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_vocabulary_has_room_for_what_is_not_learned(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert warm_start(["--out", str(tmp_path), "--vocab-size", "10"]) == 2
    assert "--vocab-size 10: what is no learned word alone takes " in caplog.text


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        (warm_start, ["--out", "FILE"], "argument --out: FILE: FILE is no folder that can be written"),
        (warm_start, ["--out", "FILE/x"], "argument --out: FILE/x: FILE is no folder that can be written"),
        (report, ["sweep", "--out", "FILE"], "argument --out: FILE: FILE is no folder that can be written"),
        (credit, [MODEL, "--json", "FILE/x"], "argument --json: FILE/x is no file that can be written"),
        (credit, [MODEL, "--json", "FOLDER"], "argument --json: FOLDER is no file that can be written"),
        (credit, [MODEL, "--figure", "FOLDER/gone/x.svg"], "gone/x.svg is no file that can be written"),
        (credit, [MODEL, "--figure", "FOLDER/x.nosuch"], "a picture's name ends with .pdf, .png, .svg"),
        (curve, ["run", "FOLDER"], "argument picture: FOLDER is no file that can be written"),
        (curve, ["run", "FOLDER/x"], "a picture's name ends with .pdf, .png, .svg"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_at_once(
    tool: Callable[[list[str]], int],
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "file").write_text("")

    def placed(text: str) -> str:
        return text.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path))

    with pytest.raises(SystemExit) as ended:
        tool([placed(text) for text in arguments])
    assert ended.value.code == 2
    assert placed(words) in capsys.readouterr().err

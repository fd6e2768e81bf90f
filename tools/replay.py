"""Play recorded traces through our own environments and compare every answer.

usage: python -m tools.replay alfworld TRACES.jsonl.xz... --data ALFWORLD_DATA
       python -m tools.replay webshop FILE.json... --data WEBSHOP_DATA

An ALFWorld trace is one line of JSON: `trial` (split/task/trial) and `steps`, each with a `command` (null for
the reset) and what the original answered. WebShop files hold episodes, rewards or searches, or the prices and
goals of seed 0. One case per trace, episode, reward and search; the first difference of each is shown. The
last line is `N passed, M failed`. A WebShop recording that cannot be played fails alone. Exit
status: 0 if all passed, 1 if any failed, 2 if the traces or data cannot be read.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

from envs.alfworld.engine import Engine, Frame
from envs.alfworld.game import GameDataError, load_game
from envs.alfworld.tasks import goal_sentences
from serl.run.surroundings import write_any_character
from tools.replay_webshop import Case, RecordingError, webshop_cases

Trace = Mapping[str, Any]
TASK_PREFIX = "Your task is to: "
FRAME_FIELDS = ("observation", "admissible_commands", "won", "score", "done")


class ReplayError(Exception):
    """The traces or the data cannot be read; the message is one sentence for the user."""


def open_text(path: Path) -> TextIO:
    """A text file for reading, compressed with xz if its name says so."""
    if path.suffix == ".xz":
        return cast(TextIO, lzma.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def read_traces(path: Path) -> Iterator[Trace]:
    """The traces of a JSON-lines file, compressed with xz or not.

    Raises:
        ReplayError: the file cannot be read, or a line is not a trace.
    """
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield parse_trace(line, f"{path}, line {number}")
    except OSError as error:
        raise ReplayError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ReplayError(f"Cannot read {path}: it is damaged, or not text ({error}).") from error


def parse_trace(line: str, where: str) -> Trace:
    """One trace from its line; `where` names the line in errors.

    Raises:
        ReplayError: the line is not a trace.
    """
    try:
        trace = json.loads(line)
    except json.JSONDecodeError as error:
        raise ReplayError(f"Cannot read {where}: it is not JSON ({error}).") from error
    if not isinstance(trace, dict) or not isinstance(trace.get("trial"), str):
        raise ReplayError(f"Cannot read {where}: it has no 'trial'.")
    steps = trace.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ReplayError(f"Cannot read {where}: it has no 'steps'.")
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("observation"), str):
            raise ReplayError(f"Cannot read {where}: a step has no 'observation'.")
    return trace


def replay_alfworld(trace: Trace, data: Path) -> str | None:
    """Play one ALFWorld trace; the first difference in words, or None if there is none.

    ALFWorld draws the sentence of the task at random when it writes a game's file, so the recorded sentence
    is taken where it is one of the game's own.

    Raises:
        ReplayError: the game's files cannot be read.
    """
    folder = data / "json_2.1.1" / trace["trial"]
    steps = trace["steps"]
    try:
        game = load_game(folder, recorded_sentence(folder, steps[0]["observation"]))
    except GameDataError as error:
        raise ReplayError(f"Cannot load the game of {trace['trial']}: {error}.") from error
    engine = Engine(game)
    for number, step in enumerate(steps):
        command = step.get("command")
        frame = engine.reset() if command is None else engine.step(str(command))
        difference = compare_frame(step, frame)
        if difference is not None:
            return f"step {number}, command {command!r}: {difference}"
    return None


def recorded_sentence(folder: Path, opening: str) -> str | None:
    """The task in a recorded opening if it is one that ALFWorld has for the game in `folder`."""
    sentence = opening.rpartition(TASK_PREFIX)[2].removesuffix(".")
    try:
        traj_data = json.loads((folder / "traj_data.json").read_text(encoding="utf-8"))
        return sentence if sentence in goal_sentences(traj_data) else None
    except (OSError, ValueError):
        # loading the game says what is wrong with the file
        return None


def compare_frame(step: Mapping[str, Any], frame: Frame) -> str | None:
    """The first field of a recorded step in which `frame` differs, in words."""
    for field in FRAME_FIELDS:
        if field in step and step[field] != getattr(frame, field):
            return f"{field} is {getattr(frame, field)!r}, recorded was {step[field]!r}"
    return None


def alfworld_cases(files: Sequence[Path], data: Path) -> Iterator[Case]:
    """One case per trace."""
    for path in files:
        found = False
        for trace in read_traces(path):
            found = True
            yield trace["trial"], partial(replay_alfworld, trace, data)
        if not found:
            raise ReplayError(f"Cannot read {path}: it holds no traces.")


CASES: dict[str, tuple[Callable[[Sequence[Path], Path], Iterator[Case]], str]] = {
    "alfworld": (alfworld_cases, "ALFWORLD_DATA"),
    "webshop": (webshop_cases, "WEBSHOP_DATA"),
}
"""Environments by name: what reads recordings, and the variable that says where the data is."""


def run(environment: str, files: Sequence[Path], data: Path | None) -> int:
    """Replay files of recordings and print the outcome; the exit status."""
    read_cases, variable = CASES[environment]
    if data is None:
        if variable not in os.environ:
            raise ReplayError(f"Say where the data is: give --data, or set {variable}.")
        data = Path(os.environ[variable])
    if not data.is_dir():
        raise ReplayError(f"Cannot read the data: {data} is not a folder.")
    passed = failed = 0
    for name, compare in read_cases(files, data):
        difference = compare()
        if difference is None:
            passed += 1
        else:
            failed += 1
            print(f"FAILED {name}: {difference}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m tools.replay",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", choices=sorted(CASES))
    parser.add_argument("files", type=Path, nargs="+", help="recorded traces, episodes, rewards or searches")
    parser.add_argument("--data", type=Path, help="the environment's data folder")
    arguments = parser.parse_args()
    try:
        return run(arguments.environment, arguments.files, arguments.data)
    except (ReplayError, RecordingError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

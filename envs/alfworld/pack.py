"""Many generated games in one small file, and the pack that ships with SERL.

The file is xz-compressed text: the first line is a JSON header (format, rules, and per split the games'
``[task id, size, number of receptacles]``), every further line one game's description in the header's order.
A description is parsed, and its game built, only when asked for.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from envs.alfworld.game import Game, GameDataError, build_game
from envs.alfworld.generator.description import GameDescription, from_json, to_json
from envs.alfworld.generator.problem import Rules, problem_pddl, traj_data

PACK_FORMAT = "serl-alfworld-pack/1"
EMBEDDED_PACK = "games.xz"


class PackError(ValueError):
    """A pack that cannot be read, with the path and the reason."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PackEntry:
    """What the index says of a game. ``size`` is small, medium or large."""

    task_id: str
    task_type: str
    size: str
    num_receptacles: int


def write_pack(path: Path, games: Mapping[str, Sequence[GameDescription]], rules: Rules) -> None:
    """Writes the games of every split; the same games give the same bytes.

    Raises ValueError if a game is there twice: its id could not tell which split it belongs to.
    """
    index: dict[str, list[tuple[str, str, int]]] = {}
    lines: list[str] = []
    seen: set[str] = set()
    for split, descriptions in games.items():
        index[split] = []
        for game in descriptions:
            if game.trial in seen:
                raise ValueError(f"game {game.trial} is in the pack twice")
            seen.add(game.trial)
            index[split].append((game.trial, game.size, len(game.furniture)))
            lines.append(to_json(game))
    header = {"format": PACK_FORMAT, "rules": asdict(rules), "splits": index}
    text = "\n".join([json.dumps(header, separators=(",", ":")), *lines, ""])
    compressed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(compressed)
    os.replace(partial, path)


class GamePack:
    """The games of a pack by task id. Reading is thread-safe: nothing changes after construction."""

    def __init__(self, rules: Rules, index: dict[str, tuple[PackEntry, ...]], lines: dict[str, str]):
        self._rules = rules
        self._index = index
        self._lines = lines
        self._entries = {entry.task_id: entry for entries in index.values() for entry in entries}
        self._split_of = {entry.task_id: split for split, entries in index.items() for entry in entries}
        self._rules_hash = hashlib.sha256(json.dumps(asdict(rules)).encode()).digest()

    @classmethod
    def open(cls, path: Path) -> GamePack:
        """Reads the index of a pack. Raises FileNotFoundError, PackError."""
        try:
            text = lzma.decompress(path.read_bytes()).decode()
        except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
            raise PackError(path, f"not an xz-compressed text ({error})") from error
        header_line, *lines = text.splitlines() or [""]
        try:
            header = json.loads(header_line)
            if header["format"] != PACK_FORMAT:
                raise PackError(path, f"format {header['format']!r}, expected {PACK_FORMAT!r}")
            rules = Rules.from_dict(header["rules"])
            index = {
                split: tuple(_entry(*game) for game in games) for split, games in header["splits"].items()
            }
        except PackError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PackError(path, f"not an ALFWorld pack: its header does not read ({error!r})") from error
        names = [entry.task_id for entries in index.values() for entry in entries]
        if len(names) != len(lines) or len(set(names)) != len(names):
            raise PackError(path, f"the index names {len(names)} games, the file holds {len(lines)}")
        return cls(rules, index, dict(zip(names, lines, strict=True)))

    def splits(self) -> tuple[str, ...]:
        """The splits that have games."""
        return tuple(split for split, entries in self._index.items() if entries)

    def entries(self, split: str) -> tuple[PackEntry, ...]:
        """What is known of a split's games without building them. Raises KeyError for an unknown split."""
        return self._index[split]

    def task_ids(self, split: str) -> tuple[str, ...]:
        """The games of a split in the pack's order. Raises KeyError for an unknown split."""
        return tuple(entry.task_id for entry in self._index[split])

    def split_of(self, task_id: str) -> str:
        """The split that holds the game. Raises KeyError for an unknown one."""
        return self._split_of[task_id]

    def entry(self, task_id: str) -> PackEntry:
        """What the index says of a game. Raises KeyError for an unknown one."""
        return self._entries[task_id]

    def description(self, task_id: str) -> GameDescription:
        """The game as it was generated. Raises KeyError for an unknown one."""
        return from_json(self._lines[task_id])

    def load(self, task_id: str) -> Game:
        """Builds a game, a new one every time. Raises KeyError for an unknown one, GameDataError."""
        line = self._lines[task_id]
        try:
            description = from_json(line)
            problem, data = problem_pddl(description, self._rules), traj_data(description)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise GameDataError(task_id, f"its line in the pack does not read: {error!r}") from error
        return build_game(task_id, problem, data)

    def fingerprint(self, task_id: str) -> str:
        """SHA-256 of the game's content and of the rules it is built with, as 64 hexadecimal digits."""
        return hashlib.sha256(self._rules_hash + self._lines[task_id].encode()).hexdigest()


def _entry(task_id: str, size: str, num_receptacles: int) -> PackEntry:
    if not isinstance(task_id, str) or not isinstance(num_receptacles, int):
        raise TypeError(f"{task_id!r:.60} is not a name, or {num_receptacles!r:.60} not a number")
    return PackEntry(task_id, task_id.partition("-")[0], size, num_receptacles)


@cache
def embedded_pack() -> GamePack:
    """The games that ship with SERL, read once a process. Raises FileNotFoundError if they are missing."""
    with as_file(files("envs.alfworld") / "data" / EMBEDDED_PACK) as path:
        return GamePack.open(path)

"""Where ALFWorld games come from: an ``alfworld-download`` folder or a pack of generated games."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from envs.alfworld.game import Game, GameDataError, GameFiles, load_game
from envs.alfworld.pack import GamePack, embedded_pack
from serl.config.paths import expanded_path

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid_seen", "valid_unseen")
GAMES_FOLDER = "json_2.1.1"


@dataclass(frozen=True, slots=True)
class GameRecord:
    """What is known of a game without building it. ``fingerprint`` is a SHA-256 of its content."""

    task_id: str
    task_type: str
    num_receptacles: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Scan:
    """The playable games of a split by id, and the ids of what could not be read, with the reason.

    ``left_out``: how many games ALFWorld itself does not play, by the reason.
    """

    records: tuple[GameRecord, ...]
    damaged: tuple[str, ...] = field(default=())
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])


class GameSource(Protocol):
    """Games by task id."""

    def splits(self) -> tuple[str, ...]:
        """The splits there is data for."""
        ...

    def scan(self, split: str) -> Scan:
        """All games of ``split``: those that `load` can build, read and checked but not built."""
        ...

    def splits_with(self, task_id: str) -> tuple[str, ...]:
        """The splits that hold this task: one, unless the data are wrong."""
        ...

    def load(self, task_id: str) -> Game:
        """Builds a game; raises KeyError for an unknown id, GameDataError for damaged data."""
        ...


class GameFolder:
    """Games as ``alfworld-download`` lays them out: ``root/json_2.1.1/SPLIT/TASK/TRIAL/``.

    A task id is ``TASK/TRIAL``. As in alfworld's own environment, games with movable receptacles, sliced
    objects, or without ``"solvable": true`` in their game file are left out. A split without a single game
    file is a folder of generated games, which are solvable by construction.
    Raises FileNotFoundError, with what to do about it, if there are no games.
    """

    def __init__(self, root: Path):
        self.root = root
        self._games = root / GAMES_FOLDER
        if not self.splits():
            raise FileNotFoundError(
                f"no ALFWorld games in {root}: expected {GAMES_FOLDER}/{{{','.join(SPLITS)}}} there. Run "
                "`alfworld-download` and `export ALFWORLD_DATA=FOLDER`, or set env.args.data to the folder, "
                "or to 'embedded' for the games that ship with SERL"
            )

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if (self._games / split).is_dir())

    def scan(self, split: str) -> Scan:
        if split not in self.splits():
            raise FileNotFoundError(
                f"no ALFWorld games of split {split!r} in {self._games}; there is: "
                f"{', '.join(self.splits())}. Run `alfworld-download` to get all splits"
            )
        trials = list(_trial_folders(self._games / split))
        has_game_files = any((folder / "game.tw-pddl").is_file() for folder in trials)
        records: list[GameRecord] = []
        damaged: list[str] = []
        left_out: Counter[str] = Counter()
        for folder in trials:
            task_id = f"{folder.parent.name}/{folder.name}"
            try:
                found = _examined(folder, task_id, has_game_files)
            except GameDataError as error:
                damaged.append(f"{task_id}: {Path(error.path).name}: {error.reason}")
                continue
            if isinstance(found, GameRecord):
                records.append(found)
            else:
                left_out[found] += 1
        logger.info("%s: %d games, %d damaged, left out: %s", split, len(records), len(damaged), left_out)
        return Scan(tuple(records), tuple(damaged), left_out)

    def splits_with(self, task_id: str) -> tuple[str, ...]:
        return tuple(split for split in self.splits() if (self._games / split / task_id).is_dir())

    def load(self, task_id: str) -> Game:
        return load_game(self.trial_dir(task_id))

    def trial_dir(self, task_id: str) -> Path:
        """The folder of a game; raises KeyError for an unknown or malformed id."""
        names = task_id.split("/")
        well_formed = len(names) == 2 and {"", ".", ".."}.isdisjoint(names)
        splits = self.splits_with(task_id) if well_formed else ()
        if not splits:
            raise KeyError(f"unknown ALFWorld task {task_id!r} in {self._games}")
        return self._games / splits[0] / task_id


class PackedGames:
    """The games of a pack."""

    def __init__(self, pack: GamePack):
        self._pack = pack

    def splits(self) -> tuple[str, ...]:
        return self._pack.splits()

    def scan(self, split: str) -> Scan:
        if split not in self.splits():
            raise FileNotFoundError(
                f"the pack of games has no split {split!r}; it has: {', '.join(self.splits())}. Point "
                "env.args.data to an ALFWorld folder (`alfworld-download`) for the others"
            )
        return Scan(
            tuple(
                GameRecord(
                    entry.task_id,
                    entry.task_type,
                    entry.num_receptacles,
                    self._pack.fingerprint(entry.task_id),
                )
                for entry in self._pack.entries(split)
            )
        )

    def splits_with(self, task_id: str) -> tuple[str, ...]:
        return (self._pack.split_of(task_id),)

    def load(self, task_id: str) -> Game:
        return self._pack.load(task_id)


def open_source(data: str) -> GameSource:
    """``embedded``, ``ALFWORLD_DATA``, ``auto`` (the latter where that variable is set, else the former), or
    the path of a folder or a pack (``~`` and ``$NAME`` are expanded).

    Raises FileNotFoundError, saying what to do, if there are no games; PackError for an unreadable pack,
    UnknownPathError.
    """
    if data == "auto":
        data = "ALFWORLD_DATA" if os.environ.get("ALFWORLD_DATA") else "embedded"
    if data == "embedded":
        return PackedGames(embedded_pack())
    if data == "ALFWORLD_DATA":
        root = os.environ.get(data)
        if not root:
            raise FileNotFoundError(
                "env.args.data is 'ALFWORLD_DATA' but that environment variable is not set: run "
                "`alfworld-download` and `export ALFWORLD_DATA=FOLDER`, or set env.args.data to 'embedded'"
            )
        return GameFolder(expanded_path(root))
    path = expanded_path(data)
    return PackedGames(GamePack.open(path)) if path.is_file() else GameFolder(path)


def _trial_folders(split_folder: Path) -> Iterator[Path]:
    """Folders holding a ``traj_data.json`` or a planning problem, ordered by task and trial name."""
    for task in sorted(entry.path for entry in os.scandir(split_folder) if entry.is_dir()):
        for trial in sorted(entry.path for entry in os.scandir(task) if entry.is_dir()):
            folder = Path(trial)
            if (folder / "traj_data.json").exists() or (folder / "initial_state.pddl").exists():
                yield folder


def _examined(folder: Path, task_id: str, has_game_files: bool) -> GameRecord | str:
    """The record of a game, or why alfworld does not play it; raises GameDataError if none can be built."""
    if "movable" in task_id:
        return "movable receptacles"
    if "Sliced" in task_id:
        return "sliced objects"
    files = GameFiles.read(folder)
    if has_game_files and files.game_file is None:
        return "no game.tw-pddl"
    if has_game_files and not files.marked_solvable:
        return 'no "solvable": true in game.tw-pddl'
    statement = files.statement()
    rules = files.rules(statement)
    digest = hashlib.sha256(files.contents["traj_data.json"])
    if has_game_files:
        digest.update(files.contents["game.tw-pddl"])
    digest.update(files.contents["initial_state.pddl"])
    num_receptacles = sum(kind == "receptacle" for kind in rules.problem.objects.values())
    return GameRecord(task_id, statement.task_type, num_receptacles, digest.hexdigest())

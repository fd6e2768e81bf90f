"""ALFWorld for SERL: task sets, environments and prompts behind the `EnvProvider` interface."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from envs.alfworld import prompt
from envs.alfworld.demonstrator import AlfworldDemonstrator, prompt_phrases
from envs.alfworld.engine import Engine
from envs.alfworld.env import AlfworldEnv, GameEngine
from envs.alfworld.game import Game
from envs.alfworld.game_sources import SPLITS, GameRecord, Scan, open_source
from envs.alfworld.one_thread import OneThreadEngine
from envs.alfworld.oracle import steps_left
from envs.alfworld.tasks import TASK_TYPES
from envs.alfworld.textworld_engine import TextWorldEngine
from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, Task, TaskSet, TextEnv, manifest_hash
from serl.config.nearest import name_hint

_CACHED_GAMES = 128


class AlfworldArguments(EnvironmentArguments):
    """``env.args`` of the environment ``alfworld``.

    ``data``: ``embedded`` (the generated games that ship with SERL), ``ALFWORLD_DATA`` (the folder that
    environment variable names), ``auto`` (that folder where the variable is set, else the embedded games),
    or the path of a folder as ``alfworld-download`` fills it or of a pack.
    ``engine``: ``native`` or ``textworld`` (the original; slow, and needs the package ``textworld``).
    ``task_types`` and ``max_receptacles`` keep only such games (``max_receptacles: null`` keeps all).
    ``strict``: damaged games are an error instead of being skipped and counted.
    ``success_reward``: given once, for the step that solves the task.
    ``show_admissible_actions``: whether the prompt lists them.
    """

    data: str = "embedded"
    engine: Literal["native", "textworld"] = "native"
    task_types: tuple[str, ...] = TASK_TYPES
    max_receptacles: PositiveInt | None = None
    strict: bool = False
    success_reward: float = Field(default=10.0, gt=0.0)
    show_admissible_actions: bool = True

    @field_validator("task_types")
    @classmethod
    def _known_task_types(cls, task_types: tuple[str, ...]) -> tuple[str, ...]:
        for task_type in task_types:
            if task_type not in TASK_TYPES:
                raise ValueError(f"{task_type!r} is not a task type{name_hint(task_type, TASK_TYPES)}")
        if not task_types:
            raise ValueError("at least one task type is needed")
        return task_types


class AlfworldProvider:
    """One per process; games are built when first played and the last ones played are kept."""

    def __init__(self, arguments: AlfworldArguments):
        self.arguments = arguments
        self._source = open_source(arguments.data)
        self._scans: dict[str, Scan] = {}
        self._lock = threading.Lock()
        self._textworld_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="textworld")
        self._load = lru_cache(maxsize=_CACHED_GAMES)(self._source.load)

    def task_set(self, split: str) -> TaskSet:
        """The games of ``split`` that pass the filters, in the order of their ids.

        Raises ValueError for an unknown split, for splits that share a task, for filters that leave no game
        and, if ``strict``, for damaged games; FileNotFoundError without data.
        """
        if split not in SPLITS:
            raise ValueError(f"env: unknown split {split!r}{name_hint(split, SPLITS)}")
        scan = self._scan(split)
        if self.arguments.strict and scan.damaged:
            raise ValueError(f"{len(scan.damaged)} damaged games in split {split!r}: {scan.damaged[0]}")
        self._assert_in_no_other_split(split, scan)
        records = [record for record in scan.records if self._wanted(record)]
        if not records:
            raise ValueError(
                f"no game of split {split!r} left: {len(scan.records)} readable, {_left_out(scan)}, "
                f"{len(scan.damaged)} damaged{f' ({scan.damaged[0]})' if scan.damaged else ''}, "
                f"env.args.task_types {', '.join(self.arguments.task_types)}, "
                f"env.args.max_receptacles {self.arguments.max_receptacles}"
            )
        return TaskSet(
            name=f"alfworld/{split}",
            tasks=tuple(Task(record.task_id, record.task_type) for record in records),
            content_hash=manifest_hash([(record.task_id, record.fingerprint) for record in records]),
            skipped=scan.damaged,
            fingerprints=tuple(record.fingerprint for record in records),
            notes=(_left_out(scan),) if scan.left_out else (),
        )

    def make_env(self) -> AlfworldEnv:
        """A fresh environment over the shared games."""
        blocking = self.arguments.engine == "textworld"
        make_engine = self._make_textworld_engine if blocking else Engine
        return AlfworldEnv(self._load, make_engine, self.arguments.success_reward, blocking)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Chat messages of one step's prompt."""
        return prompt.messages(parts, self.arguments.show_admissible_actions)

    def turn_messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Chat messages that a turn adds to a conversation."""
        return prompt.turn_messages(parts, self.arguments.show_admissible_actions)

    def progress(self, env: TextEnv) -> float:
        """Minus the length of the planner's plan. Raises ValueError for a task of another wording."""
        if not isinstance(env, AlfworldEnv) or not isinstance(env.engine, Engine):
            raise ValueError("progress needs an episode of the native engine")
        return -steps_left(env.engine)

    def demonstrator(self, env: TextEnv, rng: random.Random, detour_share: float) -> AlfworldDemonstrator:
        """The searcher for the game under way in ``env``. Raises ValueError for a task of another wording."""
        if not isinstance(env, AlfworldEnv) or not isinstance(env.engine, Engine):
            raise ValueError("demonstrations need an episode of the native engine")
        return AlfworldDemonstrator(env, env.task_description, rng, detour_share)

    def prompt_phrases(self) -> tuple[str, ...]:
        """Fixed wording of prompts, actions and feedback."""
        return prompt_phrases()

    def _make_textworld_engine(self, game: Game) -> GameEngine:
        return OneThreadEngine(TextWorldEngine, game, self._textworld_thread)

    def _scan(self, split: str) -> Scan:
        with self._lock:
            if split not in self._scans:
                self._scans[split] = self._source.scan(split)
            return self._scans[split]

    def _assert_in_no_other_split(self, split: str, scan: Scan) -> None:
        for record in scan.records:
            splits = self._source.splits_with(record.task_id)
            if splits != (split,):
                raise ValueError(f"task {record.task_id!r} is in more than one split: {', '.join(splits)}")

    def _wanted(self, record: GameRecord) -> bool:
        limit = self.arguments.max_receptacles
        return record.task_type in self.arguments.task_types and (
            limit is None or record.num_receptacles <= limit
        )


def _left_out(scan: Scan) -> str:
    reasons = ", ".join(f"{count} for {reason}" for reason, count in scan.left_out.items())
    return f"{sum(scan.left_out.values())} left out as ALFWorld does{f' ({reasons})' if reasons else ''}"


def make_provider(args: dict[str, Any]) -> AlfworldProvider:
    """Builds the provider from ``env.args``. Raises ValueError if they are wrong, FileNotFoundError."""
    return AlfworldProvider(parse_arguments(AlfworldArguments, args))

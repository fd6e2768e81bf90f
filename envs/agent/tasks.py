"""The tasks of agents: lines of a JSONL file, or what a function gives for a split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from envs.base import Task, TaskSet, manifest_hash
from serl.config.nearest import name_hint
from serl.config.paths import expanded_path
from serl.config.registry import OWN_NAME, import_own

AgentTask = dict[str, Any]


@contextmanager
def quietly() -> Iterator[None]:
    """What an agent's module prints here is for nobody."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield


def load_function(name: str, key: str) -> Any:
    """The function ``module:function`` that the argument ``key`` names. Raises ValueError."""
    if not OWN_NAME.fullmatch(name):
        raise ValueError(f"env.args.{key}: {name!r} is no module:function")
    module, _, attribute = name.partition(":")
    try:
        with quietly():
            function = getattr(import_own(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"env.args.{key}: {name!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ValueError(f"env.args.{key}: {name!r} is no function")
    return function


class AgentTasks:
    """The tasks of ``source`` by split; each a mapping with an ``id``, the rest is the agent's business.

    ``source`` is named as ``env.args.tasks`` names it, or is itself what gives the tasks of a split.
    """

    def __init__(self, source: str | Callable[[str], Iterable[AgentTask]], name: str = "agent") -> None:
        self._source, self._name = source, name
        self._splits: dict[str, dict[str, AgentTask]] = {}

    def of(self, split: str) -> dict[str, AgentTask]:
        """The tasks of ``split`` by their ids, in order. Raises ValueError, OSError."""
        if split not in self._splits:
            self._splits[split] = _by_id(self._given(split), f"{self._source}, split {split!r}")
        return self._splits[split]

    def task_set(self, split: str) -> TaskSet:
        """The manifest of ``split``. Raises ValueError, OSError."""
        tasks = self.of(split)
        prints = [hashlib.sha256(_canonical(task)).hexdigest() for task in tasks.values()]
        return TaskSet(
            name=f"{self._name}/{split}",
            tasks=tuple(Task(task_id, str(task.get("type", ""))) for task_id, task in tasks.items()),
            content_hash=manifest_hash(list(zip(tasks, prints, strict=True))),
            fingerprints=tuple(prints),
        )

    def _given(self, split: str) -> Iterable[Any]:
        if isinstance(self._source, str) and not OWN_NAME.fullmatch(self._source):
            return _lines(expanded_path(self._source), split)
        function = load_function(self._source, "tasks") if isinstance(self._source, str) else self._source
        with quietly():
            return list(function(split))


def _lines(file: Path, split: str) -> list[AgentTask]:
    """Those lines whose ``split`` it is."""
    found: list[AgentTask] = []
    splits: set[str] = set()
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                task = json.loads(line)
                splits.add(str(task["split"]))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: no JSON object with a split: {error}") from error
            if task["split"] == split:
                found.append(task)
    if split not in splits:
        known = ", ".join(sorted(splits)) or "none"
        raise ValueError(f"{file}: unknown split {split!r}{name_hint(split, splits)}; it has: {known}")
    return found


def _by_id(given: Iterable[Any], where: str) -> dict[str, AgentTask]:
    tasks: dict[str, AgentTask] = {}
    for number, task in enumerate(given):
        if not isinstance(task, dict) or not isinstance(task.get("id"), str):
            raise ValueError(f"{where}: task {number} is no mapping with an id that is a text: {task!r:.200}")
        if task["id"] in tasks:
            raise ValueError(f"{where}: the id {task['id']!r} is there twice")
        tasks[task["id"]] = task
    return tasks


def _canonical(task: AgentTask) -> bytes:
    """The content of ``task``: what it says beside its id, split and type, or else the id."""
    content = {name: value for name, value in task.items() if name not in ("id", "split", "type")}
    return json.dumps(content or task["id"], sort_keys=True).encode()

"""Tasks that are nothing but seeds: those of ``train``, and behind them those of ``valid``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from envs.base import Task, TaskSet, manifest_hash
from serl.config.nearest import name_hint

SPLITS = ("train", "valid")


def require_split(split: str) -> None:
    """Raises ValueError for another split than `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}{name_hint(split, SPLITS)}")


@dataclass(frozen=True, slots=True)
class SeedTasks:
    """``num_train`` seeds from ``first`` on, then ``num_valid``, of what ``environment`` names in full."""

    name: str
    environment: str
    first: int
    num_train: int
    num_valid: int

    def task_set(self, split: str) -> TaskSet:
        """Raises ValueError for another split than `SPLITS`."""
        require_split(split)
        begin, number = self.first, self.num_train
        if split == "valid":
            begin, number = begin + number, self.num_valid
        tasks = tuple(Task(str(seed), self.name) for seed in range(begin, begin + number))
        prints = [hashlib.sha256(f"{self.environment} {task.task_id}".encode()).hexdigest() for task in tasks]
        content_hash = manifest_hash([(t.task_id, text) for t, text in zip(tasks, prints, strict=True)])
        return TaskSet(f"{self.name}/{split}", tasks, content_hash, fingerprints=tuple(prints))

    def seed_of(self, task_id: str) -> int:
        """Raises KeyError for a task that there is not."""
        if not task_id.isdigit() or not 0 <= int(task_id) - self.first < self.num_train + self.num_valid:
            raise KeyError(task_id)
        return int(task_id)

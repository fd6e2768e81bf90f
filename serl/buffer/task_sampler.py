"""Which task is played next: endless shuffled passes for training, one fixed set for evaluation."""

from __future__ import annotations

import random
from collections import deque
from itertools import zip_longest
from typing import Any

from envs.base import Task, TaskSet
from serl.types import RolloutRequest

_EVALUATION = "evaluation"


class TaskSampler:
    """Deals groups of ``group_size`` requests over ``task_set``, every task once a pass, endlessly.

    The order of pass k depends on ``seed`` and k alone. Raises ValueError for an empty task set.
    """

    def __init__(self, task_set: TaskSet, group_size: int, seed: int):
        if not task_set.tasks:
            raise ValueError(f"task set {task_set.name!r} has no tasks")
        self._task_set = task_set
        self._group_size = group_size
        self._seed = seed
        self._requeued: deque[Task] = deque()
        self._num_groups = 0
        self._start_pass(0, position=0)

    def next_group(self) -> list[RolloutRequest]:
        """One request for each rollout of a new group; requeued tasks come first."""
        task = self._requeued.popleft() if self._requeued else self._next_task()
        group_id = f"g{self._num_groups:06d}"
        self._num_groups += 1
        generator = random.Random(f"{self._seed}:{group_id}")
        return [
            RolloutRequest(task, group_id, index, seed=generator.getrandbits(31))
            for index in range(self._group_size)
        ]

    def requeue(self, task: Task) -> None:
        """Deals ``task`` again before the pass goes on."""
        self._requeued.append(task)

    def get_state(self) -> dict[str, Any]:
        """JSON-ready position: what `next_group` deals next follows from it, the task set and the seed."""
        return {
            "content_hash": self._task_set.content_hash,
            "seed": self._seed,
            "pass": self._pass,
            "position": self._position,
            "num_groups": self._num_groups,
            "requeued": [task.task_id for task in self._requeued],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes from `get_state`. Raises ValueError if the state belongs to another task set or seed."""
        for name, own in (("content_hash", self._task_set.content_hash), ("seed", self._seed)):
            if state[name] != own:
                raise ValueError(
                    f"the sampler's state has {name} {state[name]!r}, task set {self._task_set.name!r} is "
                    f"sampled with {own!r}: the order of tasks would not continue"
                )
        by_id = {task.task_id: task for task in self._task_set.tasks}
        self._requeued = deque(by_id[task_id] for task_id in state["requeued"])
        self._num_groups = state["num_groups"]
        self._start_pass(state["pass"], state["position"])

    def _next_task(self) -> Task:
        if self._position == len(self._order):
            self._start_pass(self._pass + 1, position=0)
        task = self._order[self._position]
        self._position += 1
        return task

    def _start_pass(self, number: int, position: int) -> None:
        self._pass = number
        self._position = position
        self._order = list(self._task_set.tasks)
        random.Random(f"{self._seed}:pass {number}").shuffle(self._order)


def is_evaluation_group(group_id: str) -> bool:
    """Whether `evaluation_requests` named the group."""
    return group_id.startswith(_EVALUATION)


def evaluation_requests(task_set: TaskSet, num_tasks: int, seed: int) -> list[RolloutRequest]:
    """The evaluation set: ``num_tasks`` tasks (0: all), each once, the same on every call.

    A subset takes the task types in turn, so that their numbers differ by at most one where the task set
    allows it. Raises ValueError if the task set has fewer tasks.
    """
    if num_tasks > len(task_set):
        raise ValueError(
            f"{num_tasks} evaluation tasks are asked of task set {task_set.name!r}, which has {len(task_set)}"
        )
    tasks = task_set.tasks if num_tasks in (0, len(task_set)) else _balanced(task_set, num_tasks, seed)
    # The word that seeds are made with never changes: it decides which tasks an evaluation has.
    generator = random.Random(f"{seed}:panel seeds")
    return [
        RolloutRequest(task, f"{_EVALUATION}{number:06d}", 0, generator.getrandbits(31), evaluation=True)
        for number, task in enumerate(tasks)
    ]


def _balanced(task_set: TaskSet, num_tasks: int, seed: int) -> list[Task]:
    by_type: dict[str, list[Task]] = {}
    for task in task_set.tasks:
        by_type.setdefault(task.task_type, []).append(task)
    generator = random.Random(f"{seed}:panel")
    for tasks in by_type.values():
        generator.shuffle(tasks)
    in_turns = zip_longest(*(by_type[task_type] for task_type in sorted(by_type)))
    return [task for turn in in_turns for task in turn if task is not None][:num_tasks]

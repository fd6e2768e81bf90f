"""`env.name: reasoning_gym`: questions that Reasoning Gym generates and checks, one answer an episode.

Source: reasoning-gym on PyPI (Apache-2.0). It needs no network.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from pydantic import Field, PositiveInt

from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, StepAnswer, Task, TaskSet, TextEnv, manifest_hash
from envs.hubs.packages import require
from envs.hubs.seeds import SPLITS, require_split
from serl.config.nearest import name_hint

_INSTRUCTION = "Think first if it helps. Give the final answer, and nothing else, as <action>ANSWER</action>."


class ReasoningGymArguments(EnvironmentArguments):
    """``env.args`` of the environment ``reasoning_gym``.

    ``datasets``: names of its generators, each with options, such as ``{leg_counting: {max_animals: 4}}``.
    ``num_train`` and ``num_valid`` questions are generated of each, under ``seed``; a question that comes
    twice is left out the second time. ``full_reward``: of an answer with the score 1; others get their share.
    """

    datasets: dict[str, dict[str, Any]] = Field(min_length=1)
    num_train: PositiveInt = 1000
    num_valid: PositiveInt = 200
    seed: int = 0
    full_reward: float = Field(default=1.0, gt=0.0)


class ReasoningGymEnv(TextEnv):
    """One question. The score of an answer, from 0 to 1, is the metric ``score``; 1 is a success."""

    def __init__(self, provider: ReasoningGymProvider) -> None:
        self._provider = provider
        self.reward_range = (0.0, provider.arguments.full_reward)
        self._open = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self._dataset, self._entry = self._provider.question((options or {})["task_id"])
        self._open = True
        return self._entry["question"], self._info(None)

    def step(self, action: str) -> StepAnswer:
        if not self._open:
            raise RuntimeError("step needs a reset first")
        self._open = False
        score = float(self._dataset.score_answer(action, self._entry))
        reward = self._provider.arguments.full_reward * min(max(score, 0.0), 1.0)
        return f"Score: {score:g}", reward, True, False, self._info(score)

    def _info(self, score: float | None) -> dict[str, Any]:
        info: dict[str, Any] = {
            "admissible_actions": [],
            "task_description": self._entry["question"],
            "task_type": self._entry["metadata"]["source_dataset"],
            "success": score == 1.0,
            "action_valid": True,
            "feedback": None,
        }
        if score is None:
            return info
        said = "Right." if score == 1.0 else f"Wrong; an answer would be: {self._entry['answer']}"
        return info | {"feedback": said, "metrics": {"score": score}}


class ReasoningGymProvider:
    """Questions are generated again wherever they are asked: a task is a generator and an index."""

    def __init__(self, arguments: ReasoningGymArguments) -> None:
        self.arguments = arguments
        package = require("reasoning_gym", "reasoning-gym")
        known = package.factory.DATASETS
        for name in arguments.datasets:
            if name not in known:
                raise ValueError(f"env.args.datasets: {name!r} is not a dataset{name_hint(name, known)}")
        size = arguments.num_train + arguments.num_valid
        try:
            self._datasets = {
                name: package.create_dataset(name, size=size, seed=arguments.seed, **options)
                for name, options in arguments.datasets.items()
            }
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"env.args.datasets: {error}") from error

    def task_set(self, split: str) -> TaskSet:
        """The questions of ``train`` or ``valid``, which share none. Raises ValueError for another split."""
        require_split(split)
        tasks, prints = zip(*self._manifest[split], strict=True)
        notes = () if not self._num_twice else (f"{self._num_twice} questions came twice and are left out",)
        return TaskSet(
            name=f"reasoning_gym/{split}",
            tasks=tasks,
            content_hash=manifest_hash([(task.task_id, text) for task, text in self._manifest[split]]),
            fingerprints=prints,
            notes=notes,
        )

    def make_env(self) -> TextEnv:
        return ReasoningGymEnv(self)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        return ({"role": "user", "content": f"{parts.observation.rstrip()}\n\n{_INSTRUCTION}"},)

    def question(self, task_id: str) -> tuple[Any, dict[str, Any]]:
        """The dataset and the entry of a task. Raises KeyError."""
        name, _, index = task_id.rpartition(":")
        dataset = self._datasets[name]
        if not index.isdigit() or int(index) >= len(dataset):
            raise KeyError(task_id)
        return dataset, dataset[int(index)]

    @cached_property
    def _manifest(self) -> dict[str, list[tuple[Task, str]]]:
        """By split, tasks and hashes of their questions and answers."""
        manifest: dict[str, list[tuple[Task, str]]] = {split: [] for split in SPLITS}
        seen: set[str] = set()
        self._num_twice = 0
        for name, dataset in self._datasets.items():
            for index in range(len(dataset)):
                entry = dataset[index]
                text = hashlib.sha256(f"{entry['question']}\0{entry['answer']}".encode()).hexdigest()
                if text in seen:
                    self._num_twice += 1
                    continue
                seen.add(text)
                split = SPLITS[index >= self.arguments.num_train]
                manifest[split].append((Task(f"{name}:{index}", name), text))
        return manifest


def make_provider(args: dict[str, Any]) -> ReasoningGymProvider:
    """The questions of ``env.args``. Raises ValueError for wrong ones, and without the package."""
    return ReasoningGymProvider(parse_arguments(ReasoningGymArguments, args))

"""The one interface between SERL and an environment whose observations and actions are text."""

from __future__ import annotations

import hashlib
import json
import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium

from envs.encodable import encodable
from serl.types import Task


@dataclass(frozen=True, slots=True)
class TaskSet:
    """An ordered manifest of tasks. ``content_hash`` changes when any task's content changes.

    ``fingerprints``: a hash of each task's content, in the order of ``tasks``; empty if there are none. Two
    tasks with the same content have the same one, whatever their ids are. ``skipped`` names what could not be
    read, ``notes`` what a user should know about the data. Raises ValueError for a task whose id or type no
    file takes.
    """

    name: str
    tasks: tuple[Task, ...]
    content_hash: str
    skipped: tuple[str, ...] = field(default=())
    fingerprints: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for task in self.tasks:
            if encodable(task.task_id + task.task_type) != task.task_id + task.task_type:
                about = f"{self.name}: task {task.task_id!r} of type {task.task_type!r}"
                raise ValueError(f"{about}: half of a surrogate pair can be written to no file")

    def __len__(self) -> int:
        return len(self.tasks)


def manifest_hash(fingerprints: Sequence[tuple[str, str]]) -> str:
    """SHA-256 over ordered ``(task_id, content fingerprint)`` pairs, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(fingerprints)).encode()).hexdigest()


def assert_disjoint(*task_sets: TaskSet) -> None:
    """Raises ValueError if two task sets share a task, by its id or, under whatever id, by its content."""
    seen: dict[str, tuple[str, str]] = {}
    for task_set in task_sets:
        fingerprints = task_set.fingerprints or ("",) * len(task_set)
        own: dict[str, tuple[str, str]] = {}
        for task, fingerprint in zip(task_set.tasks, fingerprints, strict=True):
            for key in (f"id {task.task_id}", f"content {fingerprint}"):
                if key in seen:
                    name, task_id = seen[key]
                    alias = f" as {task_id!r}, their contents are equal" if task_id != task.task_id else ""
                    raise ValueError(f"task {task.task_id!r} of {task_set.name!r} is also in {name!r}{alias}")
            own[f"id {task.task_id}"] = task_set.name, task.task_id
            if fingerprint:
                own[f"content {fingerprint}"] = task_set.name, task.task_id
        seen |= own


@dataclass(frozen=True, slots=True)
class Turn:
    """One past turn as the prompt quotes it: what was seen, what was done."""

    observation: str
    action: str


@dataclass(frozen=True, slots=True)
class PromptParts:
    """What a prompt is made of. ``history`` holds the last turns, the oldest first.

    ``num_past_turns`` counts all earlier turns, quoted or not.
    """

    task_description: str
    history: tuple[Turn, ...]
    num_past_turns: int
    observation: str
    admissible_actions: tuple[str, ...]


# Observation, reward, terminated, truncated, info.
StepAnswer = tuple[str, float, bool, bool, dict[str, Any]]


class TextEnv(gymnasium.Env[str, str]):
    """A gymnasium environment of text, one episode at a time.

    ``reset(options={"task_id": ...}, seed=...)`` starts the task; ``step(action)`` takes one action.
    Both return an ``info`` with the keys ``admissible_actions`` (list of str), ``task_description`` (str),
    ``task_type`` (str), ``success`` (bool), ``action_valid`` (bool: the action was admissible) and
    ``feedback`` (str or None: the environment's comment on the last action, for hindsight). It may have
    ``metrics`` (numbers by name, such as a task score; those of an episode's last step are reported as
    means over episodes). The reward of a step is what the environment gives; the cost of an invalid action
    is the env runner's business.
    Raises KeyError for an unknown task, RuntimeError for a step after the end.

    ``blocking``: a call takes long enough (over a millisecond) to hold up other episodes of the process;
    the env runner then calls it in threads, several environments of one provider at the same time.
    ``reward_range``: the least and the greatest reward of a step, for `tools.check_env`.
    """

    blocking: bool = False
    reward_range: tuple[float, float] = (-math.inf, math.inf)
    observation_space = gymnasium.spaces.Text(max_length=2**20)
    action_space = gymnasium.spaces.Text(max_length=2**16)

    @abstractmethod
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]: ...

    @abstractmethod
    def step(self, action: str) -> StepAnswer: ...


class EnvProvider(Protocol):
    """Everything SERL asks of an environment package; one object per process, shared by its episodes."""

    def task_set(self, split: str) -> TaskSet:
        """The tasks of ``split``; raises ValueError for an unknown split, FileNotFoundError without data."""
        ...

    def make_env(self) -> TextEnv:
        """A fresh environment; cheap, and safe to use beside others of the same provider."""
        ...

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Chat messages of one step's prompt; what never changes comes first."""
        ...


@runtime_checkable
class ConversingProvider(EnvProvider, Protocol):
    """A provider with words of its own for prompts that are whole conversations (``rollout.prompt``)."""

    def turn_messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Chat messages that a turn adds to a conversation, the last one the user's.

        Those of the first turn (``parts.num_past_turns`` is 0) say all that the policy must know before it
        answers, those of a later one what the environment answered: what was said before stays in sight.
        ``parts.history`` is empty.
        """
        ...


def turn_messages(provider: EnvProvider, parts: PromptParts) -> tuple[dict[str, str], ...]:
    """What a turn adds to a conversation; by default `messages` first, and then each observation alone."""
    if isinstance(provider, ConversingProvider):
        return provider.turn_messages(parts)
    if not parts.num_past_turns:
        return provider.messages(parts)
    return ({"role": "user", "content": parts.observation},)


def text_messages(messages: Iterable[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """``messages`` of a provider. Raises TypeError if one has no role and content, or not texts alone."""
    given = tuple(messages)
    for message in given:
        if not {"role", "content"} <= message.keys() or not all(
            isinstance(value, str) for value in message.values()
        ):
            raise TypeError(f"{message!r:.80} is no message with role and content as texts")
    return given


@runtime_checkable
class MeasuringProvider(EnvProvider, Protocol):
    """A provider that can also tell useful actions from idle ones: what `tools.credit` asks for.

    Nothing is trained on it. `tools.check_env` checks its promises.
    """

    def progress(self, env: TextEnv) -> float:
        """How near the episode under way in ``env``, one of this provider's, is to success.

        Greater is nearer, −∞ a dead end; nothing is greater than after a success. Only comparisons within one
        episode matter: an action made progress exactly if it raised this. It may know more than the
        observations say, and leaves the episode as it is. Raises ValueError for an episode it cannot judge.
        """
        ...


@dataclass(frozen=True, slots=True)
class DemonstratedAction:
    """``is_detour``: drawn at random instead of what the expert thinks best, to be made up for later."""

    thought: str
    action: str
    is_detour: bool = False


class Demonstrator(Protocol):
    """An expert at the one episode of an environment it was made for, and of nothing else.

    It may know more than the observations say. ``info`` is always that of the environment's last answer.
    """

    def act(self, observation: str, info: dict[str, Any]) -> DemonstratedAction:
        """The next action; always an admissible one."""
        ...

    def admissible_action(self, info: dict[str, Any]) -> str:
        """Any action that does something here, drawn at random."""
        ...

    def inadmissible_action(self, info: dict[str, Any]) -> str | None:
        """An action that policies tend to propose here and that does nothing; None if there is none."""
        ...

    def try_out(self, action: str) -> tuple[str, bool]:
        """``(feedback, whether it brings the task nearer)`` of ``action``; the episode stays as it is."""
        ...

    def best_action(self) -> str | None:
        """The action that brings the task nearest, with full knowledge of it; None at a dead end."""
        ...

    def solution(self) -> tuple[str, ...]:
        """The actions of an attempt at the task from its start that succeeds; empty if none is known."""
        ...


@runtime_checkable
class DemonstratingProvider(EnvProvider, Protocol):
    """A provider that can also show how its tasks are done: what `tools.warm_start` asks for."""

    def demonstrator(self, env: TextEnv, rng: random.Random, detour_share: float) -> Demonstrator:
        """An expert for the episode under way in ``env``, one of this provider's.

        With probability ``detour_share`` an action is a detour.
        """
        ...

    def prompt_phrases(self) -> tuple[str, ...]:
        """Fixed wording of prompts, actions and feedback, which a tokenizer may keep as single tokens."""
        ...

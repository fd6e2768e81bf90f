"""Random episodes of an environment, recorded answer by answer."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envs.agent.provider import AgentProvider
from envs.base import EnvProvider, TextEnv
from envs.registry import load_target, make_provider

_LEFT_OPEN = re.compile(r"<[^<>]+>")
_NONSENSE = ("", "xyzzy", "open[the] <window> \\ 'now\"", "日本 é\nsecond line", "a " * 500)
_NONSENSE_SHARE = 0.15


class TargetError(ValueError):
    """What was named is no environment."""


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """``call_limit_ms``: for nine of ten calls; ``growth_limit_mb``: MB (10**6 bytes) an episode."""

    num_episodes: int = 10
    max_steps: int = 20
    seed: int = 0
    call_limit_ms: float = 50.0
    growth_limit_mb: float = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """What is checked. ``task_ids`` is empty for a class, which is reset without a task."""

    name: str
    make_env: Callable[[], TextEnv]
    task_ids: tuple[str, ...]
    provider: EnvProvider | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gave; ``action`` is None for the reset. ``error``: what it raised instead."""

    action: str | None
    seconds: float
    values: tuple[Any, ...] = ()
    error: Exception | None = None

    @property
    def observation(self) -> Any:
        return self.values[0]

    @property
    def info(self) -> dict[str, Any]:
        return self.values[-1] if isinstance(self.values[-1], dict) else {}

    @property
    def ended(self) -> bool:
        return self.action is not None and bool(self.values[2] or self.values[3])


@dataclass(slots=True)
class Record:
    """One episode. ``after_end``: what a step after the end raised, None if nothing or there was no end."""

    task_id: str | None
    answers: list[Answer] = field(default_factory=list)
    ended: bool = False
    after_end: Exception | None = None

    @property
    def actions(self) -> list[str]:
        return [answer.action for answer in self.answers if answer.action is not None]


def open_target(name: str, args: dict[str, Any], split: str) -> Target:
    """Raises TargetError, UnknownEnvironmentError, and what the environment raises for wrong arguments."""
    found = load_target(name)
    if isinstance(found, type) and issubclass(found, TextEnv):
        if args:
            raise TargetError(f"{name} is a TextEnv, which is built without arguments; name its provider")
        return Target(name, found, (), None)
    provider = make_provider(name, args)
    if not callable(getattr(provider, "task_set", None)) or not callable(getattr(provider, "make_env", None)):
        raise TargetError(f"{name} gives {type(provider).__name__}, which is neither TextEnv nor EnvProvider")
    if isinstance(provider, AgentProvider):
        provider.make_env()  # it has none, and says so
    task_ids = tuple(task.task_id for task in provider.task_set(split).tasks)
    if not task_ids:
        raise TargetError(f"{name} has no task in split {split!r}")
    return Target(name, provider.make_env, task_ids, provider)


def play_at_random(env: TextEnv, task_id: str | None, seed: int, max_steps: int) -> Record:
    """An episode of actions that are mostly admissible."""
    draw = random.Random(f"{seed} {task_id}")
    return _play(env, task_id, seed, lambda answer: _random_action(answer, draw), max_steps)


def play_again(env: TextEnv, record: Record, seed: int) -> Record:
    """The same task, seed and actions."""
    actions = iter(record.actions)
    return _play(env, record.task_id, seed, lambda _: next(actions), len(record.actions))


def _play(
    env: TextEnv, task_id: str | None, seed: int, next_action: Callable[[Answer], str], max_steps: int
) -> Record:
    record = Record(task_id)
    options = None if task_id is None else {"task_id": task_id}
    answer = _call(None, lambda: env.reset(seed=seed, options=options), 2)
    record.answers.append(answer)
    for _ in range(max_steps):
        if answer.error is not None:
            return record
        action = next_action(answer)
        answer = _call(action, lambda action=action: env.step(action), 5)
        record.answers.append(answer)
        if answer.error is None and answer.ended:
            record.ended = True
            record.after_end = _call("look", lambda: env.step("look"), 5).error
            return record
    return record


def _call(action: str | None, function: Callable[[], tuple[Any, ...]], num_values: int) -> Answer:
    started = time.perf_counter()
    try:
        values = function()
    except Exception as error:  # foreign code may raise anything; the report names it
        return Answer(action, time.perf_counter() - started, error=error)
    seconds = time.perf_counter() - started
    if not isinstance(values, tuple) or len(values) != num_values:
        return Answer(action, seconds, error=TypeError(f"it gave {values!r:.80}, not {num_values} values"))
    return Answer(action, seconds, values)


def _random_action(answer: Answer, draw: random.Random) -> str:
    offered = answer.info.get("admissible_actions")
    if not isinstance(offered, list) or not offered or draw.random() < _NONSENSE_SHARE:
        return draw.choice(_NONSENSE)
    words = str(answer.info.get("task_description", "")).split() or ["nothing"]
    return _LEFT_OPEN.sub(lambda _: " ".join(draw.choices(words, k=3)), str(draw.choice(offered)))

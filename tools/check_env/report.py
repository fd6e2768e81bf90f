"""Checks recorded episodes against what `envs/base.py` promises."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from envs.base import MeasuringProvider, TextEnv, text_messages, turn_messages
from serl.rollout.episode_state import EpisodeState
from tools.check_env.episodes import Answer, CheckSettings, Record, Target, play_again, play_at_random
from tools.check_env.progress import progress_problem

_INFO: dict[str, tuple[type, ...]] = {
    "admissible_actions": (list,),
    "task_description": (str,),
    "task_type": (str,),
    "success": (bool,),
    "action_valid": (bool,),
    "feedback": (str, type(None)),
}
_UNKNOWN_TASK = "no such task, as the environment checker hopes"
_MEASURED_TASKS = 3


@dataclass(slots=True)
class Violations:
    """By kind: how often, and the first one in words."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, text)

    def __len__(self) -> int:
        return len(self.counts)

    def lines(self) -> Iterator[str]:
        for kind, count in self.counts.items():
            yield f"VIOLATION {kind} ({count} times): {self.examples[kind]}"

    def summary(self, name: str, settings: CheckSettings) -> str:
        verdict = f"{len(self)} kinds of violations" if self.counts else "no violations"
        return f"{name}: {verdict} in {settings.num_episodes} episodes"


def check(target: Target, settings: CheckSettings) -> Violations:
    """Plays every episode twice in fresh environments, then some again and again to see memory grow."""
    violations = Violations()
    records = []
    for number in range(settings.num_episodes):
        record = _play(target, settings, number)
        records.append(record)
        again = _play_again(target, record, settings.seed)
        _check_determinism(record, again, violations)
        _check_answers(record, target, violations)
    _check_times(records, target, settings, violations)
    if target.provider is not None:
        _check_provider(target, records, violations)
    if isinstance(target.provider, MeasuringProvider):
        for record in records:
            if problem := progress_problem(target.provider, record, settings.seed):
                violations.add("progress", f"task {record.task_id!r}: {problem}")
    if "error" not in violations.counts:
        _check_memory(target, settings, violations)
    return violations


def _task_id(target: Target, number: int) -> str | None:
    if not target.task_ids:
        return None
    return target.task_ids[number * 7919 % len(target.task_ids)]


def _play(target: Target, settings: CheckSettings, number: int) -> Record:
    env = target.make_env()
    record = play_at_random(env, _task_id(target, number), settings.seed, settings.max_steps)
    env.close()
    return record


def _play_again(target: Target, record: Record, seed: int) -> Record:
    env = target.make_env()
    again = play_again(env, record, seed)
    env.close()
    return again


def _where(record: Record, step: int) -> str:
    answer = record.answers[step]
    call = "reset" if answer.action is None else f"step {step}, action {answer.action!r:.60}"
    return f"task {record.task_id!r}, {call}"


def _check_determinism(record: Record, again: Record, violations: Violations) -> None:
    for step, (first, second) in enumerate(zip(record.answers, again.answers, strict=False)):
        if repr(first.error) != repr(second.error) or first.values != second.values:
            parts = [
                f"{one!r:.60} and then {other!r:.60}"
                for one, other in zip(first.values, second.values, strict=False)
                if one != other
            ]
            text = parts[0] if parts else f"{first.error!r} and then {second.error!r}"
            violations.add("determinism", f"{_where(record, step)}, with the same seed gave {text}")
            return


def _check_answers(record: Record, target: Target, violations: Violations) -> None:
    reward_range = target.make_env().reward_range
    for step, answer in enumerate(record.answers):
        where = _where(record, step)
        if answer.error is not None:
            violations.add("error", f"{where} raised {answer.error!r:.200}")
            continue
        if not isinstance(answer.observation, str):
            violations.add("observation", f"{where}: {answer.observation!r:.60} is not text")
        if answer.action is not None:
            _check_reward(answer.values[1], reward_range, where, violations)
        _check_info(answer, where, violations)
    if record.ended and not isinstance(record.after_end, RuntimeError):
        raised = "nothing" if record.after_end is None else repr(record.after_end)
        text = f"a step after the end raised {raised}, expected RuntimeError"
        violations.add("end", f"{_where(record, len(record.answers) - 1)}: {text}")


def _check_reward(reward: Any, reward_range: tuple[float, float], where: str, violations: Violations) -> None:
    low, high = reward_range
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        violations.add("reward", f"{where}: {reward!r:.60} is not a finite number")
    elif not low <= reward <= high:
        violations.add("reward", f"{where}: {reward!r} is outside reward_range {low:g} to {high:g}")


def _check_info(answer: Answer, where: str, violations: Violations) -> None:
    info = answer.values[-1]
    if not isinstance(info, dict):
        violations.add("info", f"{where}: info is {info!r:.60}, not a dict")
        return
    for key, types in _INFO.items():
        if key not in info:
            violations.add("info", f"{where}: info lacks {key!r}")
        elif not isinstance(info[key], types):
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
            violations.add("info", f"{where}: info[{key!r}] is {info[key]!r:.60}, expected {expected}")
    actions = info.get("admissible_actions")
    if isinstance(actions, list) and not all(isinstance(action, str) for action in actions):
        violations.add("info", f"{where}: an admissible action is not text")
    metrics = info.get("metrics", {})
    if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
        violations.add("info", f"{where}: info['metrics'] is {metrics!r:.60}, expected numbers by name")


def _check_times(
    records: list[Record], target: Target, settings: CheckSettings, violations: Violations
) -> None:
    """The first episode may load what all share; one slow call in ten may be the machine's fault."""
    if target.make_env().blocking:
        return
    for name, is_reset in (("reset", True), ("step", False)):
        seconds = sorted(
            answer.seconds
            for record in records[1:] or records
            for answer in record.answers
            if (answer.action is None) == is_reset
        )
        if not seconds:
            continue
        slow = 1000 * seconds[min(int(0.9 * len(seconds)), len(seconds) - 1)]
        if slow > settings.call_limit_ms:
            violations.add(
                "blocking",
                f"a {name} takes {slow:.1f} ms (limit {settings.call_limit_ms:g} ms) and holds up all other "
                "episodes of its process: make it faster, or declare the environment blocking",
            )


def _check_provider(target: Target, records: list[Record], violations: Violations) -> None:
    assert target.provider is not None
    if len(set(target.task_ids)) != len(target.task_ids):
        violations.add("tasks", "two tasks of a split have the same id")
    env = target.make_env()
    try:
        env.reset(seed=0, options={"task_id": _UNKNOWN_TASK})
        violations.add("tasks", "reset accepts an unknown task id, expected KeyError")
    except KeyError:
        pass
    except Exception as error:  # foreign code may raise anything; the report names it
        violations.add("tasks", f"reset with an unknown task id raised {error!r:.100}, expected KeyError")
    finally:
        env.close()
    for record in records:
        for step, answer in enumerate(record.answers):
            if answer.error is None and not answer.ended and set(_INFO) <= set(answer.info):
                _check_messages(target, answer, _where(record, step), violations)


def _check_messages(target: Target, answer: Answer, where: str, violations: Violations) -> None:
    """Those of a window and, where the step is the first or not, those that a conversation gains by it."""
    provider = target.provider
    assert provider is not None
    try:
        parts = EpisodeState(answer.observation, answer.info).prompt_parts(history_length=0)
    except Exception as error:  # as an env runner would refuse it
        violations.add("info", f"{where}: {error}")
        return
    in_conversation = replace(parts, num_past_turns=0 if answer.action is None else 1)
    renderings = {
        "messages": lambda: provider.messages(parts),
        "turn_messages": lambda: turn_messages(provider, in_conversation),
    }
    for name, render in renderings.items():
        try:
            messages = text_messages(render())
        except Exception as error:  # foreign code may raise anything; the report names it
            violations.add("messages", f"{where}: {name} raised {error!r:.100}")
            continue
        if not messages:
            violations.add("messages", f"{where}: {name}: there are none")
        elif name == "turn_messages" and messages[-1]["role"] != "user":
            violations.add("messages", f"{where}: the last of {name} is not the user's")


def _check_memory(target: Target, settings: CheckSettings, violations: Violations) -> None:
    """The same few tasks again and again: what is loaded once has been loaded by then.

    Python's objects are counted as such; what a library keeps shows in the size of the process, if that
    grows every time.
    """
    env = target.make_env()
    process = psutil.Process()
    # Libraries' objects stay: looking for garbage among a million of them takes most of the time.
    gc.freeze()
    _repeat(env, target, settings)
    sizes = [process.memory_info().rss]
    for _ in range(2):
        _repeat(env, target, settings)
        sizes.append(process.memory_info().rss)
    tracemalloc.start()
    try:
        _repeat(env, target, settings)
        objects = tracemalloc.get_traced_memory()[0]
        _repeat(env, target, settings)
        objects = tracemalloc.get_traced_memory()[0] - objects
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    env.close()
    grown = max(objects, min(sizes[1] - sizes[0], sizes[2] - sizes[1])) / settings.num_episodes / 1e6
    if grown > settings.growth_limit_mb:
        violations.add(
            "memory", f"an episode leaves {grown:.2f} MB behind (limit {settings.growth_limit_mb:g} MB)"
        )


def _repeat(env: TextEnv, target: Target, settings: CheckSettings) -> None:
    """Episodes in turns in ``env`` and in a fresh environment."""
    for number in range(settings.num_episodes):
        played = target.make_env() if number % 2 else env
        task_id = _task_id(target, number % _MEASURED_TASKS)
        play_at_random(played, task_id, settings.seed, settings.max_steps)
        if played is not env:
            played.close()
    gc.collect()

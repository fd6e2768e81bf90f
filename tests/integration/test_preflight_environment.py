"""What is found of an environment before a run starts: what it raises, whatever it is, and when it hangs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from envs.base import PromptParts
from envs.example import GuessEnv, GuessProvider
from serl.config.load import load_experiment
from serl.run.preflight import Finding, examine_inputs


class GoneAtStep(GuessEnv):
    def step(self, action: str) -> Any:
        raise ConnectionError("simulator is gone")


class GoneAtReset(GuessEnv):
    def reset(self, **kwargs: Any) -> Any:
        raise ConnectionError("simulator is gone")


class HangsAtReset(GuessEnv):
    def reset(self, **kwargs: Any) -> Any:
        time.sleep(60.0)


class ExitsAtReset(GuessEnv):
    def reset(self, **kwargs: Any) -> Any:
        raise SystemExit(0)


class ActsByNumber(GuessEnv):
    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation, {**info, "admissible_actions": [1, 2]}


class Provider(GuessProvider):
    def __init__(self, env: type[GuessEnv]) -> None:
        super().__init__()
        self._env = env

    def make_env(self) -> GuessEnv:
        return self._env()


def gone_at_step(args: dict[str, Any]) -> Provider:
    return Provider(GoneAtStep)


def gone_at_reset(args: dict[str, Any]) -> Provider:
    return Provider(GoneAtReset)


class GoneForHalfOfTheTasks(GuessEnv):
    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        if int(kwargs["options"]["task_id"]) % 2:
            raise ConnectionError("simulator is gone")
        return observation, info


def gone_for_half(args: dict[str, Any]) -> Provider:
    return Provider(GoneForHalfOfTheTasks)


def exits_at_reset(args: dict[str, Any]) -> Provider:
    return Provider(ExitsAtReset)


def acts_by_number(args: dict[str, Any]) -> Provider:
    return Provider(ActsByNumber)


class SpeaksInNumbers(GuessProvider):
    def messages(self, parts: PromptParts) -> Any:
        return ({"role": "user", "content": 5},)


def speaks_in_numbers(args: dict[str, Any]) -> SpeaksInNumbers:
    return SpeaksInNumbers()


def hangs_at_reset(args: dict[str, Any]) -> Provider:
    return Provider(HangsAtReset)


def guessing(factory: str, folder: Path) -> list[Finding]:
    """What is found of an experiment with an environment of this file."""
    path = folder / "guess.yaml"
    path.write_text(
        f"name: guess\nmodel: {{path: 'embedded:tiny_alfworld', max_model_len: 512}}\n"
        f"env: {{name: '{__name__}:{factory}', call_timeout_s: 0.5}}\n"
        "rollout: {max_prompt_length: 448, max_response_length: 32}\nhindsight: {max_context_length: 480}\n"
        "evaluation: {split: valid}\n"
    )
    return examine_inputs(load_experiment(path))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("gone_at_step", "ConnectionError: simulator is gone"),
        ("gone_at_reset", "ConnectionError: simulator is gone"),
        ("exits_at_reset", "SystemExit: 0"),
        ("acts_by_number", "TypeError: the admissible action 1 is no text"),
        (
            "speaks_in_numbers",
            "{'role': 'user', 'content': 5} is no message with role and content as texts",
        ),
        ("hangs_at_reset", "no answer within env.call_timeout_s = 0.5"),
    ],
)
def test_an_environment_that_fails_at_once_is_told(factory: str, words: str, tmp_path: Path):
    told = [found.text for found in guessing(factory, tmp_path) if found.verdict == "wrong"]
    assert len(told) == 1 and told[0].startswith(f"{__name__}:{factory}: task ") and told[0].endswith(words)


def without_database(args: dict[str, Any]) -> Any:
    raise RuntimeError("no database")


def exiting(args: dict[str, Any]) -> Any:
    raise SystemExit(0)


def forgetful(args: dict[str, Any]) -> None:
    pass


class TasksAreGone(GuessProvider):
    def task_set(self, split: str) -> Any:
        raise KeyError("tasks")


def tasks_are_gone(args: dict[str, Any]) -> TasksAreGone:
    return TasksAreGone()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("without_database", "RuntimeError('no database') ("),
        ("exiting", "SystemExit(0) ("),
        ("forgetful", "'NoneType' object has no attribute 'task_set'"),
        ("tasks_are_gone", "KeyError('tasks') ("),
    ],
)
def test_an_environment_whose_tasks_cannot_be_had_is_told(factory: str, words: str, tmp_path: Path):
    (told,) = [found for found in guessing(factory, tmp_path) if found.verdict == "wrong"]
    assert told.subject == "data" and f"{__name__}:{factory}" in told.text and words in told.text


def test_tasks_that_cannot_be_played_beside_others_are_counted(tmp_path: Path):
    found = guessing("gone_for_half", tmp_path)
    assert {finding.verdict for finding in found} == {"ok"}
    (told,) = [finding.text for finding in found if finding.subject == "environment"]
    assert " tasks cannot be played: " in told and told.endswith("ConnectionError: simulator is gone")

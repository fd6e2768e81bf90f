from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from envs.base import TextEnv
from envs.example import GuessEnv, GuessProvider
from envs.example import make_provider as make_guess_provider
from serl.config.load import load_experiment
from tools.check_env.__main__ import main as check_env

_counter = itertools.count()
_kept: list[bytes] = []


class PoliteEnv(GuessEnv):
    """The example, for any task, as a class that is built without arguments."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"task_id": "3"})


class Undetermined(PoliteEnv):
    def step(self, action):
        _, *rest = super().step(action)
        return f"answer {next(_counter)}", *rest


class Wordless(PoliteEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation.encode(), *rest


class Generous(PoliteEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 11.0, *rest


class Slow(PoliteEnv):
    def step(self, action):
        time.sleep(0.012)
        return super().step(action)


class Hoarding(PoliteEnv):
    def reset(self, *, seed=None, options=None):
        _kept.append(bytes(1_000_000))
        return super().reset(seed=seed, options=options)


class Endless(PoliteEnv):
    def step(self, action):
        self.guesses_left = self.guesses_left or 1
        return super().step(action)


class Silent(PoliteEnv):
    def step(self, action):
        *rest, info = super().step(action)
        del info["feedback"]
        return *rest, info


class Failing(PoliteEnv):
    def step(self, action):
        raise ZeroDivisionError("here")


class Careless(GuessEnv):
    def reset(self, *, seed=None, options=None):
        task_id = (options or {})["task_id"]
        return super().reset(seed=seed, options={"task_id": task_id if len(task_id) == 1 else "1"})


class CarelessProvider(GuessProvider):
    def make_env(self):
        return Careless()


def careless(args: dict[str, Any]) -> CarelessProvider:
    return CarelessProvider()


class Meddling(GuessProvider):
    def progress(self, env):
        env.guesses_left = 1
        return 0.0


class Undecided(GuessProvider):
    def progress(self, env):
        return float("nan")


class AnyGuessWins(GuessEnv):
    def step(self, action):
        self.secret = int(action[-1]) if action[-1:].isdigit() else self.secret
        return super().step(action)


class Backward(GuessProvider):
    def make_env(self):
        return AnyGuessWins()

    def progress(self, env):
        return float(env.guesses_left)


def meddling(args: dict[str, Any]) -> Meddling:
    return Meddling()


def undecided(args: dict[str, Any]) -> Undecided:
    return Undecided()


def backward(args: dict[str, Any]) -> Backward:
    return Backward()


class Interrupting(GuessProvider):
    """Adds to a conversation what only the system says."""

    def turn_messages(self, parts):
        return ({"role": "system", "content": parts.observation},)


class Numeric(GuessProvider):
    def messages(self, parts):
        return ({"role": "user", "content": 5},)


def numeric(args: dict[str, Any]) -> Numeric:
    return Numeric()


class UnmeasuredEnv(GuessEnv):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "metrics": None}


class Unmeasured(GuessProvider):
    def make_env(self):
        return UnmeasuredEnv()


def unmeasured(args: dict[str, Any]) -> Unmeasured:
    return Unmeasured()


def interrupting(args: dict[str, Any]) -> Interrupting:
    return Interrupting()


def exiting(args: dict[str, Any]) -> Any:
    raise SystemExit(0)


class NotAnEnvironment:
    def __init__(self, args: dict[str, Any]):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["alfworld", "max_receptacles=6"],
        ["webshop"],
        ["envs.example:make_provider"],
        [f"{__name__}:PoliteEnv"],
    ],
)
def test_our_own_environments_keep_their_promises(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_env([*arguments, "--episodes", "6", "--call-limit-ms", "60000"]) == 0
    assert capsys.readouterr().out == f"{arguments[0]}: no violations in 6 episodes\n"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("Undetermined", "determinism", "with the same seed gave 'answer 0' and then 'answer"),
        ("Wordless", "observation", "is not text"),
        ("Generous", "reward", "outside reward_range 0 to 10"),
        ("Slow", "blocking", "declare the environment blocking"),
        ("Hoarding", "memory", "leaves 1.00 MB behind"),
        ("Endless", "end", "a step after the end raised nothing, expected RuntimeError"),
        ("Silent", "info", "info lacks 'feedback'"),
        ("Failing", "error", "ZeroDivisionError('here')"),
        ("careless", "tasks", "reset accepts an unknown task id, expected KeyError"),
        ("meddling", "progress", "the episode goes another way once asked"),
        ("undecided", "progress", "nan is not a number"),
        ("backward", "progress", "0 after a success, but 3 before it"),
        ("numeric", "messages", "{'role': 'user', 'content': 5} is no message with"),
        ("unmeasured", "info", "info['metrics'] is None, expected numbers by name"),
        ("interrupting", "messages", "the last of turn_messages is not the user's"),
    ],
)
def test_each_broken_promise_is_named_alone(
    name: str, kind: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _kept.clear()
    limit_ms = "10" if kind == "blocking" else "60000"
    assert check_env([f"{__name__}:{name}", "--episodes", "4", "--call-limit-ms", limit_ms]) == 1
    violation, summary = capsys.readouterr().out.splitlines()
    assert violation.startswith(f"VIOLATION {kind} (") and words in violation
    assert summary == f"{__name__}:{name}: 1 kinds of violations in 4 episodes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alfwurld"], "unknown environment 'alfwurld'"),
        ([f"{__name__}:Missing"], "cannot be loaded"),
        ([f"{__name__}:NotAnEnvironment"], "neither TextEnv nor EnvProvider"),
        ([f"{__name__}:exiting"], "exiting': SystemExit(0) ("),
        ([f"{__name__}:PoliteEnv", "key=1"], "built without arguments"),
        (["webshop", "catalogue"], "no key=value"),
        (["webshop", "catalogue=none"], "env.args.catalogue"),
        (["webshop", "--split", "nowhere"], "unknown split 'nowhere'"),
    ],
)
def test_what_is_no_environment_is_told_in_words(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_env(arguments) == 2
    assert words in capsys.readouterr().err


def test_the_example_is_forty_lines_and_plays_an_episode() -> None:
    env = make_guess_provider({}).make_env()
    assert isinstance(env, TextEnv)
    env.reset(options={"task_id": "4"})
    assert env.step("guess 1")[:3] == ("Too low.", 0.0, False)
    assert env.step("sing")[4]["action_valid"] is False
    observation, reward, terminated, _, info = env.step("guess 4")
    assert (observation, reward, terminated, info["success"]) == ("Right!", 10.0, True, True)
    with pytest.raises(RuntimeError):
        env.step("guess 4")


def test_an_experiment_can_name_the_example(tmp_path) -> None:
    path = tmp_path / "guess.yaml"
    path.write_text(
        "name: guess\nmodel: {path: embedded:tiny_alfworld}\nenv: {name: 'envs.example:make_provider'}\n"
    )
    assert load_experiment(path, []).env.name == "envs.example:make_provider"

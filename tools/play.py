"""Play an environment in a terminal, with what a policy would see: the valid actions and what came before.

    python -m tools.play alfworld
    python -m tools.play webshop --split valid --seed 3 catalogue=small data=WEBSHOP_DATA

Answer with the number of an action or with the action itself. `history` shows all turns so far, `quit` (or
the end of the input) leaves. Arguments `key=value` are the environment's own (`env.args`). An environment is
named as in `env.name`: built in, installed, or package.module:factory.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Sequence

from envs.base import EnvProvider, Task, TextEnv, Turn
from envs.registry import UnknownEnvironmentError, make_provider
from serl.config.errors import ConfigError
from serl.config.yaml_files import parse_yaml
from serl.rollout.episode_state import EpisodeState
from serl.run.surroundings import write_any_character

_LEFT_OPEN = re.compile(r"<([^<>]+)>")
_QUIT = frozenset({"quit", "exit", "q"})
_LAST_TURNS = 2


class BadRequest(ValueError):
    """What was asked for cannot be played; the message is for the user."""


class Left(Exception):
    """The player left before the end."""


def choose_task(provider: EnvProvider, split: str, task_id: str | None, seed: int | None) -> Task:
    """The task named, or one drawn from ``split``. Raises BadRequest for a task that is not there."""
    tasks = provider.task_set(split).tasks
    if task_id is None:
        return random.Random(seed).choice(tasks)
    for task in tasks:
        if task.task_id == task_id:
            return task
    raise BadRequest(f"no task {task_id!r} in split {split!r}; the first of {len(tasks)}: {tasks[0].task_id}")


def read_action(actions: Sequence[str], turns: Sequence[Turn]) -> str:
    """What the player does. A number stands for an action of the list; what that leaves open is asked for.

    Raises Left.
    """
    while True:
        answer = _ask("> ").strip()
        if answer.lower() in _QUIT:
            raise Left
        if answer.lower() == "history":
            print(_in_words(turns) or "Nothing has been done yet.")
        elif answer.isdecimal():
            number = int(answer)
            if 1 <= number <= len(actions):
                return _LEFT_OPEN.sub(lambda left_open: _ask(f"{left_open[1]}: "), actions[number - 1])
            print(f"There is no action {number}: 1 to {len(actions)}, or an action in words.")
        elif answer:
            return answer


def play(env: TextEnv, task: Task, max_steps: int) -> None:
    """One game, until it ends, the player leaves or ``max_steps`` are over."""
    state = EpisodeState(*env.reset(options={"task_id": task.task_id}))
    print(f"Task: {state.info['task_description']}")
    while not state.ended and len(state.turns) < max_steps:
        actions = state.info["admissible_actions"]
        _show(state.turns, state.observation, actions)
        try:
            action = read_action(actions, state.turns)
        except Left:
            break
        state.advance(action, env.step(action))
        if state.info["feedback"]:
            print(f"\n{state.info['feedback']}")
    print(f"\n{state.observation}" if state.ended else "")
    print(outcome(state))


def outcome(state: EpisodeState) -> str:
    """How a game went, in one line."""
    word = "solved" if state.success else "not solved" if state.ended else "left unfinished"
    metrics = state.info.get("metrics", {})
    figures = "".join(f", {name} {value:.3g}" for name, value in metrics.items())
    return f"{word} after {len(state.turns)} steps: reward {state.reward:g}{figures}"


def _show(turns: Sequence[Turn], observation: str, actions: Sequence[str]) -> None:
    print(f"\nStep {len(turns) + 1}")
    if turns:
        print(f"You did: {'; '.join(turn.action for turn in turns[-_LAST_TURNS:])}")
    print(f"{observation}\n")
    width = len(str(len(actions)))
    for number, action in enumerate(actions, 1):
        print(f"{number:>{width}}  {action}")


def _in_words(turns: Sequence[Turn]) -> str:
    return "\n".join(f"{n}. {turn.observation}\n   > {turn.action}" for n, turn in enumerate(turns, 1))


def _ask(prompt: str) -> str:
    """A line of input; the end of it is like leaving."""
    try:
        return input(prompt)
    except EOFError:
        print()
        raise Left from None


def env_args(pairs: Sequence[str]) -> dict[str, object]:
    """``key=value`` arguments, values read as YAML. Raises BadRequest."""
    args: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadRequest(f"{pair!r} is no key=value")
        try:
            args[key] = parse_yaml(value, "the value is not YAML")
        except ConfigError as error:
            raise BadRequest(f"{pair!r}: {error}") from error
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for an environment or task that is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.play",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", help="alfworld, webshop, or package.module:factory")
    parser.add_argument("args", nargs="*", metavar="key=value", help="arguments of the environment")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--task", metavar="ID", help="the task to play (default: one drawn at random)")
    parser.add_argument("--seed", type=int, help="draws the same task again")
    parser.add_argument("--max-steps", type=int, default=50, help="default: %(default)s")
    options = parser.parse_intermixed_args(arguments)
    try:
        provider = make_provider(options.environment, env_args(options.args))
        task = choose_task(provider, options.split, options.task, options.seed)
        env = provider.make_env()
    except (BadRequest, UnknownEnvironmentError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.environment}, task {task.task_id}. A number or an action; history; quit.")
    try:
        play(env, task, options.max_steps)
    except KeyboardInterrupt:
        print()
    finally:
        env.close()
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

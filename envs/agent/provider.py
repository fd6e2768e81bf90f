"""`env.name: agent`: an agent as it is, a function or a command, in the place of an environment."""

from __future__ import annotations

import shutil
from typing import Any, NoReturn, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from envs.agent.tasks import AgentTask, AgentTasks, load_function
from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, TaskSet, TextEnv


class AgentArguments(EnvironmentArguments):
    """``env.args`` of the environment ``agent``.

    ``run``: the agent as ``module:function``, which gets a task and returns a reward or a report
    (`envs.agent.report`); or ``command``: a program and its arguments, which gets the task as JSON on its
    standard input and prints the same as JSON in its last line. ``tasks``: a JSONL file, or
    ``module:function`` from a split to its tasks. ``grader``: ``module:function``, which gets the task and
    what the agent returned (of a command: what it printed), and returns reward, success and metrics instead.
    ``timeout_s``: of one episode, and of grading it. ``max_output_kib``: so much of the end of what it prints
    is kept, for messages about failures.
    """

    run: str = ""
    command: tuple[str, ...] = ()
    tasks: str
    grader: str = ""
    timeout_s: PositiveFloat = 600.0
    max_output_kib: PositiveInt = 64

    @model_validator(mode="after")
    def _one_agent(self) -> Self:
        if bool(self.run) == bool(self.command):
            raise ValueError("give the agent as run: module:function or as command: [...]")
        return self


class PlaysByItself(ValueError):
    """Somebody asked an agent for what only environments have: steps to play, messages to render."""


class AgentProvider:
    """Tasks, and how an agent is run on them; nothing is imported until `load`.

    ``tasks``: in the place of those that the arguments name.
    """

    def __init__(self, arguments: AgentArguments, tasks: AgentTasks | None = None) -> None:
        self.arguments = arguments
        self._tasks = tasks or AgentTasks(arguments.tasks)

    def task_set(self, split: str) -> TaskSet:
        """See `EnvProvider`."""
        return self._tasks.task_set(split)

    def task(self, split: str, task_id: str) -> AgentTask:
        """What the agent gets. Raises KeyError for an unknown id, and what `task_set` raises."""
        return self._tasks.of(split)[task_id]

    @property
    def preparations(self) -> list[str]:
        """What is done once, before episodes are forked: see `envs.agent.fork_server`."""
        functions = (self.arguments.run, self.arguments.grader)
        return list(dict.fromkeys(name.partition(":")[0] for name in functions if name))

    def load(self) -> None:
        """Raises ValueError if a function cannot be imported, or the program of a command is not there."""
        for key, name in (("run", self.arguments.run), ("grader", self.arguments.grader)):
            if name:
                load_function(name, key)
        if self.arguments.command and shutil.which(self.arguments.command[0]) is None:
            raise ValueError(f"env.args.command: there is no program {self.arguments.command[0]!r}")

    def make_env(self) -> TextEnv:
        """Raises PlaysByItself."""
        self._refuse()

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """Raises PlaysByItself."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise PlaysByItself("env.name = agent: an agent plays by itself; it has no steps for others to take")


def make_provider(args: dict[str, Any]) -> AgentProvider:
    """The agent of ``env.args``. Raises ValueError for wrong ones."""
    return AgentProvider(parse_arguments(AgentArguments, args))

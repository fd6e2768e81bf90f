"""`env.name: verifiers:ID`: environments of verifiers, which play by themselves and ask through the gateway.

``ID`` is a package with a `load_environment`, or a class of verifiers itself, such as `ReasoningGymEnv`. Its
own loop runs unchanged, tools and all, and its rubric gives the reward. Source: verifiers on PyPI (MIT); each
environment has a licence of its own. Nothing is downloaded: an environment that asks for a host when it is
loaded is refused. Whom it asks while it plays, such as a judge, is its own business.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from openai import AsyncOpenAI
from pydantic import Field, PositiveFloat, PositiveInt

from envs.agent.provider import AgentArguments, AgentProvider
from envs.agent.tasks import AgentTask, AgentTasks, quietly
from envs.arguments import EnvironmentArguments, parse_arguments
from envs.base import PromptParts, TextEnv
from envs.hubs.packages import asking_nobody, require
from envs.hubs.seeds import SPLITS, require_split
from envs.hubs.verifiers_steps import StepByStep, newest


class VerifiersArguments(EnvironmentArguments):
    """``env.args`` of an environment ``verifiers:ID``.

    ``options``: as its `load_environment`, or the class, takes them. ``num_valid``: so many tasks at the end
    are held out where it has none for evaluation. ``success``: an episode with at least this reward is one.
    ``timeout_s``: of one episode.
    """

    options: dict[str, Any] = Field(default_factory=dict)
    num_valid: PositiveInt = 100
    success: float = 1.0
    timeout_s: PositiveFloat = 600.0


class VerifiersProvider(AgentProvider):
    """A task is a row of the environment's dataset; a row that is trained on is left out of ``valid``."""

    def __init__(self, env_id: str, arguments: VerifiersArguments) -> None:
        self._given = json.dumps([env_id, arguments.options], sort_keys=True)
        self._num_valid, self._success = arguments.num_valid, arguments.success
        name = f"verifiers/{env_id}"
        super().__init__(
            AgentArguments(run=f"{__name__}:play", tasks=name, timeout_s=arguments.timeout_s),
            AgentTasks(self._rows, name),
        )
        environment(self._given)

    @property
    def preparations(self) -> list[str]:
        """The environment is loaded once, before its episodes are forked."""
        return [f"{__name__}:environment {self._given}"]

    def make_env(self) -> TextEnv:
        """The environment step by step: an action is a whole response of the policy."""

        def start(task_id: str, client: Any) -> Any:
            split = task_id.partition(":")[0]
            if split not in SPLITS:
                raise KeyError(task_id)
            return play(self.task(split, task_id), client)

        return StepByStep(start)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        """For people; an episode's prompts are the environment's own."""
        return ({"role": "user", "content": parts.observation},)

    def _rows(self, split: str) -> Iterator[AgentTask]:
        require_split(split)
        loaded = environment(self._given)
        rows = loaded.get_dataset().to_list()
        if loaded.eval_dataset is None:
            rows, valid = rows[: -self._num_valid], rows[-self._num_valid :]
        else:
            valid = loaded.eval_dataset.to_list()
        if split == "valid":
            trained = {_content(row) for row in rows}
            rows = [row for row in valid if _content(row) not in trained]
        common = {"environment": self._given, "success": self._success}
        for row in rows:
            task_id = f"{split}:{row['example_id']}"
            yield {"id": task_id, "type": row["task"], "content": _content(row), **common}


def make_provider(env_id: str, args: dict[str, Any]) -> VerifiersProvider:
    """The environment ``env_id``. Raises ValueError if it cannot be loaded, and without the package."""
    return VerifiersProvider(env_id, parse_arguments(VerifiersArguments, args))


@functools.cache
def environment(given: str) -> Any:
    """The environment of an ID and its options, both as one JSON, with its data. Raises ValueError."""
    env_id, options = json.loads(given)
    package = require("verifiers", "verifiers")
    with quietly(), asking_nobody() as hosts:
        try:
            own = getattr(package, env_id) if env_id in package.__all__ else None
            loaded = own(**options) if own else package.load_environment(env_id, **options)
            loaded.build_dataset()
            loaded.build_eval_dataset()
            return loaded
        except Exception as error:  # an environment may raise anything where it cannot be loaded
            would = hosts or "OfflineMode" in str(error)
            why = "it would download something, which SERL does not let it: " if would else ""
            raise ValueError(f"env.name: verifiers:{env_id}: {why}{error}") from error


async def play(task: AgentTask, client: Any = None) -> dict[str, Any]:
    """One rollout of the environment, and what its rubric says of it, as `envs.agent.report` reads it."""
    loaded, errors = environment(task["environment"]), require("verifiers.errors", "verifiers")
    row = json.loads(task["content"]) | {"example_id": int(task["id"].rpartition(":")[2])}
    state = await loaded.rollout(row, client or AsyncOpenAI(), "policy", {})
    if state["error"] is not None and not isinstance(state["error"], errors.ModelError):
        raise state["error"]  # of the environment; those of the model are the gateway's to tell
    await loaded.rubric.score_rollout(state)
    is_chat = loaded.message_type == "chat"  # of a text that is completed nothing is said beside it
    said = [*(step["prompt"] for step in state["trajectory"][1:]), state["final_env_response"] or []]
    return {
        "reward": state["reward"],
        "success": state["reward"] >= task["success"],
        "metrics": {name: float(value) for name, value in state["metrics"].items()},
        "turns": [
            {"id": step["response"].id, "feedback": (newest(messages) or None) if is_chat else None}
            for step, messages in zip(state["trajectory"], said, strict=True)
        ],
    }


def _content(row: dict[str, Any]) -> str:
    """Raises ValueError for what is no JSON, such as an image."""
    try:
        return json.dumps({name: value for name, value in row.items() if name != "example_id"})
    except TypeError as error:
        raise ValueError(f"env.name: a task is more than text and numbers: {error}") from error

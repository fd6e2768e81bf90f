"""An environment that keeps its episodes waiting, some of them far longer than others."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from envs.arguments import parse_arguments
from envs.base import EnvProvider, PromptParts, StepAnswer, TaskSet, TextEnv
from envs.registry import make_provider as make_inner_provider
from serl.config import ExperimentConfig


class DelayArguments(BaseModel):
    """Another environment, ``name`` with ``args``, whose steps take ``step_s`` seconds more in the median
    episode.

    An episode draws its factor once, log-normal with ``sigma``: most are quick, a few take far longer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    step_s: float = Field(gt=0.0)
    sigma: float = Field(ge=0.0)


class DelayedEnv(TextEnv):
    """``inner``, ``step_s`` times a factor of the episode slower; the factor's logarithm is drawn."""

    blocking = True

    def __init__(self, inner: TextEnv, step_s: float, sigma: float, rng: random.Random) -> None:
        self._inner = inner
        self._step_s = step_s
        self._sigma = sigma
        self._rng = rng
        self.delay_s = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.delay_s = self._step_s * math.exp(self._rng.gauss(0.0, self._sigma))
        return self._inner.reset(seed=seed, options=options)

    def step(self, action: str) -> StepAnswer:
        time.sleep(self.delay_s)
        return self._inner.step(action)

    def close(self) -> None:
        self._inner.close()


class DelayedProvider:
    """The tasks and prompts of another provider."""

    def __init__(self, arguments: DelayArguments) -> None:
        self._arguments = arguments
        self._inner: EnvProvider = make_inner_provider(arguments.name, arguments.args)
        self._rng = random.Random()

    def task_set(self, split: str) -> TaskSet:
        return self._inner.task_set(split)

    def make_env(self) -> DelayedEnv:
        settings = self._arguments
        return DelayedEnv(self._inner.make_env(), settings.step_s, settings.sigma, self._rng)

    def messages(self, parts: PromptParts) -> tuple[dict[str, str], ...]:
        return self._inner.messages(parts)


def make_provider(args: dict[str, Any]) -> DelayedProvider:
    """Of ``env.args``, which are `DelayArguments`. Raises ValueError if they are wrong."""
    return DelayedProvider(parse_arguments(DelayArguments, args))


def delayed(experiment: ExperimentConfig, step_s: float, sigma: float) -> ExperimentConfig:
    """``experiment`` on its environment behind a `DelayedProvider`."""
    env = experiment.env
    args = {"name": env.name, "args": env.args, "step_s": step_s, "sigma": sigma}
    return experiment.model_copy(
        update={"env": env.model_copy(update={"name": f"{__name__}:make_provider", "args": args})}
    )

"""Which actions of an episode were of use, by an environment that can tell: the episode is played again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from envs.base import MeasuringProvider
from envs.registry import make_provider
from serl.config import ExperimentConfig
from serl.rollout.actions import ResponseAction
from serl.rollout.episode import environment_seed
from serl.rollout.episode_state import EpisodeState
from serl.types import Trajectory

# An admissible action that made no progress is idle, whether it did harm or nothing.
ActionKind = Literal["progress", "idle", "inadmissible"]


class ReplayError(ValueError):
    """An episode cannot be played again, or went another way this time."""


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """``anchor`` is the observation that was acted on."""

    kind: ActionKind
    anchor: str


def measuring_provider(experiment: ExperimentConfig, setting: str) -> MeasuringProvider:
    """The environment, which ``setting`` asks what actions are worth. Raises TypeError if it cannot tell."""
    provider = make_provider(experiment.env.name, experiment.env.args)
    if not isinstance(provider, MeasuringProvider):
        raise TypeError(cannot_measure(experiment, setting))
    return provider


def cannot_measure(experiment: ExperimentConfig, setting: str) -> str:
    """The sentence about ``setting`` and an environment without `MeasuringProvider.progress`."""
    return (
        f"{setting} contradicts env.name = {experiment.env.name!r}: its provider has no `progress` "
        "(see envs/base.py)"
    )


def judged_trajectory(provider: MeasuringProvider, trajectory: Trajectory) -> list[JudgedStep]:
    """`judged_steps` of ``trajectory``."""
    return judged_steps(
        provider,
        trajectory.task.task_id,
        [step.response_text for step in trajectory.steps],
        [step.next_observation for step in trajectory.steps],
    )


def judged_steps(
    provider: MeasuringProvider, task_id: str, responses: Sequence[str], answers: Sequence[str | None]
) -> list[JudgedStep]:
    """The steps of the episode of a task whose policy wrote ``responses`` and was given ``answers``.

    ``answers`` are the observations after each response; None is compared with nothing. Raises ReplayError
    for an unknown task or another answer than was given, ValueError as `MeasuringProvider.progress` does.
    """
    env = provider.make_env()
    try:
        try:
            state = EpisodeState(*env.reset(seed=environment_seed(task_id), options={"task_id": task_id}))
        except KeyError as error:
            raise ReplayError(f"the environment has no task {task_id!r}") from error
        before = provider.progress(env)
        steps: list[JudgedStep] = []
        for response, answer in zip(responses, answers, strict=True):
            if state.ended:
                raise ReplayError(f"task {task_id!r} ended before step {len(steps) + 1}")
            action, anchor = ResponseAction.of(response), state.observation
            state.advance(action.sent, env.step(action.sent))
            if answer is not None and state.observation != answer:
                raise ReplayError(f"task {task_id!r} answered step {len(steps) + 1} otherwise than recorded")
            after = provider.progress(env)
            came_nearer: ActionKind = "progress" if after > before else "idle"
            steps.append(JudgedStep(came_nearer if action.is_valid(state.info) else "inadmissible", anchor))
            before = after
    finally:
        env.close()
    return steps

"""The hinted gap: how much better the policy plays with evidence in its prompt than without.

Every step is sampled twice: as always, and again after the same prompt with evidence about that first answer
in it; the second one is carried out. Evidence is collected as in training, of a group of the episode so far,
its first answer tried out, and of a successful attempt: the demonstrator's best one. So a source that speaks
of a step itself, such as the environment's answer, is of a step that was taken back, and a source that quotes
a success has one. It is what the teacher knows, put to use.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from envs.base import DemonstratingProvider, Task
from serl.batch.group import finish
from serl.batch.teacher_prompts import add_teacher_prompts
from serl.config import ExperimentConfig, HindsightSection
from serl.rollout.prompt import Prompt
from serl.types import Trajectory, TrajectoryGroup
from tools.credit.measuring import sections
from tools.credit.playing import Episode, Hint, play
from tools.credit.policy import Policy


@dataclass(frozen=True, slots=True)
class HintedGap:
    """Whether each task was solved, ``plain`` and ``hinted``, in the same order."""

    plain: list[bool]
    hinted: list[bool]

    @property
    def gains(self) -> list[float]:
        """hinted − plain of each task."""
        return [float(told) - float(own) for own, told in zip(self.plain, self.hinted, strict=True)]


def measure_hints(
    provider: DemonstratingProvider,
    policy: Policy,
    config: ExperimentConfig,
    tasks: Sequence[Task],
    names: Sequence[str],
) -> Iterator[tuple[str, HintedGap]]:
    """By the name of the evidence, as in `sections`; sampled as in the experiment's evaluations."""
    solutions = {task.task_id: _solution(provider, policy, config, task) for task in tasks}
    plain = _solved(provider, policy, config, tasks, None)
    for name in names:
        hint = _hint(policy, config, sections(config)[name], solutions)
        yield name, HintedGap(plain, _solved(provider, policy, config, tasks, hint))


def _solved(
    provider: DemonstratingProvider,
    policy: Policy,
    config: ExperimentConfig,
    tasks: Sequence[Task],
    hint: Hint | None,
) -> list[bool]:
    episodes = [Episode(provider, policy, config, task) for task in tasks]
    play(episodes, policy, config.evaluation.temperature, hint)
    for episode in episodes:
        episode.close()
    return [episode.state.success for episode in episodes]


def _hint(
    policy: Policy,
    config: ExperimentConfig,
    section: HindsightSection,
    solutions: dict[str, Trajectory | None],
) -> Hint:
    def hint(episode: Episode, prompt: Prompt, response_ids: list[int]) -> list[int] | None:
        attempt = episode.again()
        attempt.act(prompt, response_ids, [0.0] * len(response_ids))
        attempt.close()
        solution = solutions[episode.task.task_id]
        others = [] if solution is None else [solution]
        group = TrajectoryGroup("hint", episode.task, [attempt.trajectory("hint", 0), *others])
        rows = finish(group, config).rows
        last = np.arange(len(rows)) == len(attempt.steps) - 1
        told, _ = add_teacher_prompts(rows, group, last, section, policy.encoder, {})
        ids: list[int] = told.teacher_prompt_ids[len(attempt.steps) - 1].tolist()
        return ids or None

    return hint


def _solution(
    provider: DemonstratingProvider, policy: Policy, config: ExperimentConfig, task: Task
) -> Trajectory | None:
    """The demonstrator's best actions up to success; None where they do not lead there in time."""
    episode = Episode(provider, policy, config, task)
    demonstrator = provider.demonstrator(episode.env, random.Random(0), 0.0)
    while not episode.ended:
        prompt, action = episode.prompt(), demonstrator.best_action()
        if prompt is None or action is None:
            break
        ids = policy.encoder.tokenizer.encode(f"<action>{action}</action>", add_special_tokens=False)
        episode.act(prompt, ids, [0.0] * len(ids))
    episode.close()
    return episode.trajectory("solution", 1) if episode.state.success else None

"""Demonstrations for behaviour cloning: prompts as an env runner would render them, responses of an expert.

Every state is labelled with what the environment's `Demonstrator` does; some of its actions are detours, and
some others that are carried out are not admissible and no label (as in DAgger, arXiv 1011.0686), so that the
policy learns to recover.

The same states are also shown with hindsight, rendered as for the teacher, so that the policy can read it
before it becomes its own teacher. The environment's answer to one action tried there: the label is that
action if it brought the task nearer, and the best one if not, so no answer lies beside a label that it speaks
against. And an attempt that succeeded: the label is its latest action that brings the task nearer from here,
and the best one if there is none. Labels beside hindsight are never detours: it is good for something. A
teacher scores actions behind the thoughts of the student, which may have led astray: a share of these labels
stands behind a thought of some other step, which is no label itself, so that what is known counts for more
than what was thought.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envs.base import DemonstratedAction, DemonstratingProvider, Task, turn_messages
from serl.config.sampling import PromptForm
from serl.hindsight.context import render_context
from serl.hindsight.evidence import Evidence, QuotedStep, StepEvidence
from serl.rollout.episode_state import EpisodeState
from serl.rollout.told_prompt import with_context

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DemonstrationSettings:
    """Shares are probabilities per step; ``max_steps`` and ``history_length`` as in the config's ``env``,
    ``prompt`` as in its ``rollout``. Hindsight is a branch of a conversation, and costs all of it once more:
    only ``branch_share`` of its steps are candidates for it.

    With ``imitate_detours`` the expert's detours are labels too: the policy learns to wander now and then,
    which reinforcement learning can take away again. Of the other states, a share is also shown with the
    environment's answer, some of these beside a success, and a share with a success; of what is shown with
    either, ``stray_thought_share`` has a thought of another step.
    """

    num_episodes: int = 2400
    max_steps: int = 15
    history_length: int = 2
    prompt: PromptForm = "window"
    branch_share: float = 0.25
    detour_share: float = 0.2
    imitate_detours: bool = True
    inadmissible_action_share: float = 0.06
    answer_share: float = 1.0
    success_share: float = 1.0
    success_beside_answer_share: float = 0.15
    stray_thought_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Chat messages of one prompt and the response to learn, with the thought or behind it."""

    messages: tuple[dict[str, str], ...]
    response: str
    has_hindsight: bool = False
    thought_is_given: bool = False


def demonstrate(
    provider: DemonstratingProvider, tasks: Sequence[Task], settings: DemonstrationSettings, seed: int
) -> Iterator[Demonstration]:
    """``num_episodes`` episodes over seeded shuffles of ``tasks``; the same arguments give the same steps."""
    rng = random.Random(seed)
    thoughts: dict[str, None] = {}
    queue: list[Task] = []
    for _ in range(settings.num_episodes):
        if not queue:
            queue = rng.sample(list(tasks), len(tasks))
        yield from _Episode(provider, queue.pop(), settings, rng, thoughts).play()


def response_text(thought: str, action: str) -> str:
    """A response in the form the prompt asks for."""
    return f"<think>{thought}</think><action>{action}</action>"


class _Episode:
    """One episode of the expert, with everything it takes to render prompts.

    ``thoughts`` are those of all steps so far, and get those of this episode.
    """

    def __init__(
        self,
        provider: DemonstratingProvider,
        task: Task,
        settings: DemonstrationSettings,
        rng: random.Random,
        thoughts: dict[str, None],
    ):
        self._thoughts = thoughts
        self._provider, self._task, self._settings, self._rng = provider, task, settings, rng
        self._env = provider.make_env()
        self._state = EpisodeState(*self._env.reset(options={"task_id": task.task_id}))
        self._demonstrator = provider.demonstrator(self._env, rng, settings.detour_share)
        self._conversation: tuple[dict[str, str], ...] = ()

    def play(self) -> Iterator[Demonstration]:
        for _ in range(self._settings.max_steps):
            real_observation = self._state.observation
            if self._rng.random() < self._settings.inadmissible_action_share:
                self._try_inadmissible_action()
            shown = self._demonstrator.act(real_observation, self._state.info)
            self._thoughts[shown.thought] = None
            if not shown.is_detour or self._settings.imitate_detours:
                yield Demonstration(self._messages(), response_text(shown.thought, shown.action))
                if not shown.is_detour:
                    yield from self._with_hindsight(shown)
            self._act(shown.thought, shown.action)
            if self._state.ended:
                return

    def _act(self, thought: str, action: str) -> None:
        response = {"role": "assistant", "content": response_text(thought, action)}
        self._conversation = (*self._messages(), response)
        self._state.advance(action, self._env.step(action))

    def _try_inadmissible_action(self) -> None:
        action = self._demonstrator.inadmissible_action(self._state.info)
        if action is not None:
            self._act("", action)

    def _messages(self) -> tuple[dict[str, str], ...]:
        if self._settings.prompt == "window":
            return self._provider.messages(self._state.prompt_parts(self._settings.history_length))
        return (*self._conversation, *turn_messages(self._provider, self._state.prompt_parts(0)))

    def _with_hindsight(self, shown: DemonstratedAction) -> Iterator[Demonstration]:
        if self._settings.prompt == "conversation" and self._rng.random() >= self._settings.branch_share:
            return
        best = self._demonstrator.best_action()
        if best is None:
            num_turns = len(self._state.turns)
            logger.info("%s: dead end after %d turns, no hindsight", self._task.task_id, num_turns)
            return
        if self._rng.random() < self._settings.answer_share:
            with_success = self._rng.random() < self._settings.success_beside_answer_share
            parts = self._success() if with_success else []
            tried = self._action_to_try(best, shown.action)
            feedback, came_nearer = self._demonstrator.try_out(tried)
            parts.append(Evidence("immediate_feedback", text=feedback))
            yield self._told(parts, shown.thought, tried if came_nearer else best)
        if self._rng.random() < self._settings.success_share:
            actions = self._demonstrator.solution()
            if actions:
                yield self._told([_quoted(actions)], shown.thought, self._latest_helpful(actions) or best)

    def _success(self) -> list[Evidence]:
        """A successful attempt as the teacher reads it, without its thoughts; empty if none is known."""
        actions = self._demonstrator.solution()
        return [_quoted(actions)] if actions else []

    def _told(self, parts: Sequence[Evidence], thought: str, label: str) -> Demonstration:
        context, _ = render_context(StepEvidence(parts=tuple(parts)))
        assert context is not None
        messages = tuple(with_context(self._messages(), context))
        share = self._settings.stray_thought_share
        # Nothing is drawn without a share: policies of before are made anew from the same draws.
        is_stray = share > 0.0 and self._rng.random() < share
        if is_stray:
            thought = self._rng.choice(list(self._thoughts))
        return Demonstration(
            messages, response_text(thought, label), has_hindsight=True, thought_is_given=is_stray
        )

    def _action_to_try(self, best: str, chosen: str) -> str:
        """As often right as wrong, and wrong in the ways of a policy: out of place, astray, or searching."""
        draw = self._rng.random()
        if draw < 0.4:
            return best
        if draw < 0.55:
            return chosen
        inadmissible = self._demonstrator.inadmissible_action(self._state.info) if draw < 0.85 else None
        return inadmissible or self._demonstrator.admissible_action(self._state.info)

    def _latest_helpful(self, actions: Sequence[str]) -> str | None:
        for action in dict.fromkeys(reversed(actions)):
            if action in self._state.info["admissible_actions"] and self._demonstrator.try_out(action)[1]:
                return action
        return None


def _quoted(actions: Sequence[str]) -> Evidence:
    """A successful attempt as the teacher reads it, without its thoughts."""
    steps = tuple(
        QuotedStep(index, None, f"<action>{action}</action>") for index, action in enumerate(actions)
    )
    return Evidence("successful_sample", quoted_steps=steps)

"""Demonstrations for behaviour cloning: prompts as an env runner would render them, responses of a searcher.

Every state is labelled with what the searcher does; some of its actions are random, and some others that are
carried out are not admissible and no label (as in DAgger, arXiv 1011.0686), so that the policy learns to
recover. A share of the demonstrations also shows hindsight about one action tried in that state, rendered as
for the teacher: the label is that action if it brought the task nearer, and the searcher's choice if not. So
the policy learns to read hindsight before it becomes its own teacher.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envs.alfworld.engine import Engine
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.oracle import Searcher, plan
from envs.alfworld.provider import AlfworldProvider
from envs.base import PromptParts, Task, Turn
from serl.hindsight.context import render_context
from serl.hindsight.evidence import Evidence, StepEvidence


@dataclass(frozen=True, slots=True)
class DemonstrationSettings:
    """Shares are probabilities per step; ``max_steps`` and ``history_length`` as in the config's ``env``.

    With ``imitate_random_actions`` the searcher's random actions are labels too: the policy learns to wander
    now and then, which reinforcement learning can take away again.
    """

    num_episodes: int = 2400
    max_steps: int = 15
    history_length: int = 2
    random_action_share: float = 0.2
    imitate_random_actions: bool = True
    inadmissible_action_share: float = 0.06
    hindsight_share: float = 0.2
    search_order: str = "plausible"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Chat messages of one prompt and the response to learn."""

    messages: tuple[dict[str, str], ...]
    response: str
    has_hindsight: bool = False


def demonstrate(
    provider: AlfworldProvider, tasks: Sequence[Task], settings: DemonstrationSettings, seed: int
) -> Iterator[Demonstration]:
    """``num_episodes`` episodes over seeded shuffles of ``tasks``; the same arguments give the same steps."""
    rng = random.Random(seed)
    queue: list[Task] = []
    for _ in range(settings.num_episodes):
        if not queue:
            queue = rng.sample(list(tasks), len(tasks))
        yield from _Episode(provider, queue.pop(), settings, rng).play()


def response_text(thought: str, action: str) -> str:
    """A response in the form the prompt asks for."""
    return f"<think>{thought}</think><action>{action}</action>"


class _Episode:
    """One game of the searcher, with everything it takes to render prompts."""

    def __init__(
        self, provider: AlfworldProvider, task: Task, settings: DemonstrationSettings, rng: random.Random
    ):
        self._provider, self._settings, self._rng = provider, settings, rng
        self._env: AlfworldEnv = provider.make_env()
        self._observation, self._info = self._env.reset(options={"task_id": task.task_id})
        self._history: deque[Turn] = deque(maxlen=settings.history_length)
        self._num_turns = 0
        self._seen_actions: list[str] = list(self._info["admissible_actions"])
        self._searcher = Searcher(
            self._info["task_description"], rng, settings.random_action_share, settings.search_order
        )

    def play(self) -> Iterator[Demonstration]:
        for _ in range(self._settings.max_steps):
            real_observation = self._observation
            if self._rng.random() < self._settings.inadmissible_action_share:
                self._try_inadmissible_action()
            admissible = self._info["admissible_actions"]
            thought, action = self._searcher.act(real_observation, admissible)
            wanders = self._searcher.last_action_was_random
            if not wanders or self._settings.imitate_random_actions:
                yield Demonstration(self._messages(), response_text(thought, action))
                if not wanders and self._rng.random() < self._settings.hindsight_share:
                    yield self._with_hindsight(thought, action)
            if self._act(action):
                return

    def _act(self, action: str) -> bool:
        """Takes the action; True if that ended the game."""
        self._history.append(Turn(self._observation, action))
        self._num_turns += 1
        self._observation, _, done, _, self._info = self._env.step(action)
        self._seen_actions = (self._seen_actions + self._info["admissible_actions"])[-100:]
        return done

    def _try_inadmissible_action(self) -> None:
        action = self._inadmissible_action()
        if action is not None:
            self._act(action)

    def _inadmissible_action(self) -> str | None:
        """What policies tend to propose: an action of another place or time, or with a thing not there."""
        admissible = self._info["admissible_actions"]
        places = [
            action.removeprefix("go to ") for action in self._seen_actions if action.startswith("go to ")
        ]
        imagined = [
            f"take {self._searcher.goal.object} {number} from {place}"
            for place in places
            for number in (1, 2)
        ]
        options = self._seen_actions if self._rng.random() < 0.5 else imagined
        refused = [action for action in options if action not in admissible]
        return self._rng.choice(refused) if refused else None

    def _messages(self) -> tuple[dict[str, str], ...]:
        parts = PromptParts(
            task_description=self._info["task_description"],
            history=tuple(self._history) if self._settings.history_length else (),
            num_past_turns=self._num_turns,
            observation=self._observation,
            admissible_actions=tuple(self._info["admissible_actions"]),
        )
        return self._provider.messages(parts)

    def _with_hindsight(self, thought: str, chosen: str) -> Demonstration:
        tried = self._action_to_try(chosen)
        future = self._env.copy()
        _, _, _, _, info = future.step(tried)
        came_nearer = info["success"] or _plan_length(future) < _plan_length(self._env)
        label = tried if came_nearer else chosen
        context, _ = render_context(
            StepEvidence(parts=(Evidence("immediate_feedback", text=info["feedback"]),))
        )
        *before, last = self._messages()
        messages = (*before, {**last, "content": f"{last['content']}\n\n{context}"})
        return Demonstration(messages, response_text(thought, label), has_hindsight=True)

    def _action_to_try(self, chosen: str) -> str:
        draw = self._rng.random()
        if draw < 0.4:
            return chosen
        inadmissible = self._inadmissible_action() if draw < 0.7 else None
        return inadmissible or self._rng.choice(self._info["admissible_actions"])


def _plan_length(env: AlfworldEnv) -> int:
    """Steps of a full-knowledge plan from here: how far the task is from being solved."""
    assert isinstance(env.engine, Engine)
    return len(plan(env.engine))

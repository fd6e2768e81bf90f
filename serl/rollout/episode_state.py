"""Where an episode stands: all that its next prompt depends on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from envs.base import PromptParts, StepAnswer, Turn


@dataclass(slots=True)
class EpisodeState:
    """An episode between two actions. ``observation`` and ``info`` are the environment's last answer.

    ``reward`` is the return so far. Begins as ``EpisodeState(*env.reset(…))``.
    """

    observation: str
    info: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    @property
    def success(self) -> bool:
        return bool(self.info["success"])

    def prompt_parts(self, history_length: int) -> PromptParts:
        """What the next prompt is made of, with the last ``history_length`` turns."""
        return PromptParts(
            task_description=self.info["task_description"],
            history=tuple(self.turns[-history_length:]) if history_length else (),
            num_past_turns=len(self.turns),
            observation=self.observation,
            admissible_actions=tuple(self.info["admissible_actions"]),
        )

    def advance(self, action: str, answer: StepAnswer) -> float:
        """Takes in what the environment answered to ``action``; returns the reward of this turn."""
        self.turns.append(Turn(self.observation, action))
        self.observation, reward, self.terminated, self.truncated, self.info = answer
        self.reward += reward
        return reward

    def copy(self) -> EpisodeState:
        """Another state that goes its own way from here."""
        return replace(self, turns=list(self.turns))

"""Where an episode stands: all that its next prompt depends on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

from envs.base import PromptParts, StepAnswer, Turn
from envs.encodable import encodable


def _encodable_info(info: dict[str, Any]) -> dict[str, Any]:
    def of(value: Any) -> Any:
        if isinstance(value, str):
            return encodable(value)
        if isinstance(value, list | tuple):
            entries = [of(entry) for entry in cast(list[Any], value)]
            return entries if isinstance(value, list) else tuple(entries)
        return value

    return {key: of(value) for key, value in info.items()}


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

    def __post_init__(self) -> None:
        self.observation, self.info = encodable(self.observation), _encodable_info(self.info)

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
        observation, reward, self.terminated, self.truncated, info = answer
        self.observation, self.info = encodable(observation), _encodable_info(info)
        self.reward += reward
        return reward

    def copy(self) -> EpisodeState:
        """Another state that goes its own way from here."""
        return replace(self, turns=list(self.turns))

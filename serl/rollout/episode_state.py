"""Where an episode stands: all that its next prompt depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

from envs.base import PromptParts, StepAnswer, Turn
from envs.encodable import encodable


def _taken_in(info: dict[str, Any]) -> dict[str, Any]:
    """``info`` as all who read it later can; what is wrong with it must show here, in this episode alone."""

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return encodable(value)
        if isinstance(value, list | tuple):
            entries = [of(entry) for entry in cast(list[Any], value)]
            return entries if isinstance(value, list) else tuple(entries)
        return value

    taken = {key: of(value) for key, value in info.items()}
    taken["success"] = bool(taken["success"])
    if not isinstance(taken.get("feedback"), str | None):
        raise TypeError(f"info['feedback'] is {taken['feedback']!r:.60}, expected str or None")
    metrics = taken.get("metrics", {})
    try:
        taken["metrics"] = {encodable(name): float(value) for name, value in metrics.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(f"info['metrics'] is {metrics!r:.60}, expected numbers by name") from error
    return taken


@dataclass(slots=True)
class EpisodeState:
    """An episode between two actions. ``observation`` and ``info`` are the environment's last answer.

    ``reward`` is the return so far. Begins as ``EpisodeState(*env.reset(…))``. This and `advance` raise
    whatever comes of an answer that `TextEnv` does not allow, if it would harm more than this episode.
    """

    observation: str
    info: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        self.observation, self.info = encodable(self.observation), _taken_in(self.info)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    @property
    def success(self) -> bool:
        return self.info["success"]

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
        self.observation, self.info = encodable(observation), _taken_in(info)
        if not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}")
        self.reward += reward
        return reward

    def copy(self) -> EpisodeState:
        """Another state that goes its own way from here."""
        return replace(self, turns=list(self.turns))

"""Two small environments of gymnasium, registered when this is imported."""

from __future__ import annotations

import string
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Discrete, Text


class Counting(gymnasium.Env[str, Any]):
    """Say "up" or "down" until the number that the seed draws is reached."""

    observation_space = Text(max_length=100, charset=string.printable)

    def __init__(self, numbered: bool = True) -> None:
        self.action_space = Discrete(2, start=1) if numbered else Text(max_length=10)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.number, self.wanted = 0, int(self.np_random.integers(1, 4))
        return f"{self.number} of {self.wanted}", {}

    def step(self, action: Any):
        self.number += 1 if action in (1, "up") else -1
        reached = self.number == self.wanted
        return (
            f"{self.number} of {self.wanted}",
            float(reached),
            reached,
            False,
            {"feedback": f"took {action}"},
        )


class Seeing(Counting):
    """Observes something else than text."""

    observation_space = Box(0, 1)


gymnasium.register("Counting-v0", "counting_env:Counting")
gymnasium.register("Seeing-v0", "counting_env:Seeing")

"""One turn of the training loop: its clock, its counters, and what a progress bar shows of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol


class Describes(Protocol):
    def describe(self) -> str: ...


class TrainingInterrupted(RuntimeError):
    """A stop was asked for; nothing of the last finished update is lost."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar shows inside an iteration."""

    phase: str
    episodes: int
    episodes_wanted: int
    env_steps: int
    response_tokens: int
    staleness: float
    seconds: float
    judged: int = 0
    judge_pending: int = 0


@dataclass(slots=True)
class Iteration:
    """``counters`` are those of the env runners; ``not_polling_s``: how long nobody polled them."""

    deadline: float
    started: float = field(default_factory=time.monotonic)
    counters: Counter[str] = field(default_factory=Counter)
    waited_for_batch_s: float = 0.0
    not_polling_s: float = 0.0
    last_polled: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def check_deadline(self, waiting_for: str, *parts: Describes) -> None:
        """Raises TimeoutError after the deadline; its text ends with what ``parts`` say of themselves."""
        if time.monotonic() > self.deadline:
            state = "; ".join(part.describe() for part in parts)
            raise TimeoutError(f"waited too long for {waiting_for}; {state}")

    def progress(
        self, phase: str, episodes: int, wanted: int, staleness: float, judged: int, judge_pending: int
    ) -> Progress:
        """How far the iteration is, in ``phase``, with ``episodes`` of the ``wanted``."""
        return Progress(
            phase=phase,
            episodes=episodes,
            episodes_wanted=wanted,
            env_steps=self.counters["env_steps"],
            response_tokens=self.counters["response_tokens"],
            staleness=staleness,
            seconds=self.seconds,
            judged=judged,
            judge_pending=judge_pending,
        )

    def metrics(self) -> dict[str, float]:
        """Below ``runners/``, ``throughput/`` and ``time/``."""
        counters, seconds = self.counters, self.seconds
        metrics = {f"runners/{name}": float(value) for name, value in counters.items()}
        return metrics | {
            "throughput/env_steps_per_s": counters["env_steps"] / seconds,
            "throughput/response_tokens_per_s": counters["response_tokens"] / seconds,
            "throughput/prompt_tokens_per_s": counters["prompt_tokens"] / seconds,
            "time/iteration_s": seconds,
            "time/wait_for_batch_s": self.waited_for_batch_s,
            "time/not_polling_s": self.not_polling_s,
        }

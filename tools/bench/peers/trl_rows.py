"""Trajectories as TRL's GRPOTrainer takes them: as many rows of every group, each of them one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serl.types import Trajectory


@dataclass(slots=True)
class TRLRows:
    """Columns, as a ``rollout_func`` returns them. A blank row has no reward and an ``env_mask`` of 0.

    TRL compares rows of a group with each other, and leaves out those without a reward.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    env_mask: list[list[int]] = field(default_factory=list)
    row_reward: list[float | None] = field(default_factory=list)

    def add_group(
        self,
        trajectories: Iterable[Trajectory],
        num_rows: int,
        invalid_action_penalty: float,
        blank_id: int,
    ) -> None:
        """A row a step, and blank ones of two tokens ``blank_id`` up to ``num_rows``.

        A row's reward is its trajectory's, less by the penalty where its own action was invalid, as SERL
        compares them.
        """
        before = len(self.prompt_ids)
        for trajectory in trajectories:
            for step in trajectory.steps:
                self.prompt_ids.append(step.prompt_ids)
                self.completion_ids.append(step.response_ids)
                self.logprobs.append(step.old_logprobs)
                self.env_mask.append([1] * len(step.response_ids))
                self.row_reward.append(
                    trajectory.reward - (0.0 if step.action_valid else invalid_action_penalty)
                )
        for _ in range(num_rows - (len(self.prompt_ids) - before)):
            self.prompt_ids.append([blank_id])
            self.completion_ids.append([blank_id])
            self.logprobs.append([0.0])
            self.env_mask.append([0])
            self.row_reward.append(None)

    def output(self, has_logprobs: bool) -> dict[str, Any]:
        """What a ``rollout_func`` returns; log-probabilities of transformers' generation are not known."""
        return {
            "prompt_ids": self.prompt_ids,
            "completion_ids": self.completion_ids,
            "logprobs": self.logprobs if has_logprobs else None,
            "env_mask": self.env_mask,
            "row_reward": self.row_reward,
        }


def cut_at(stop_ids: Sequence[int], token_ids: list[int]) -> list[int]:
    """``token_ids`` up to and with the first of ``stop_ids``."""
    for index, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[: index + 1]
    return token_ids

"""What was seen after the action."""

from __future__ import annotations

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.sources import CandidateAttempts, register_source


@register_source(
    "next_observation",
    title="What was observed after the action",
    attempts=CandidateAttempts.BEST_AND_WORST,
)
def next_observation(attempt: Attempt, group: GroupView) -> Evidence | None:
    """The observation that the action led to."""
    observation = attempt.step.next_observation
    return None if observation is None else Evidence(text=observation)

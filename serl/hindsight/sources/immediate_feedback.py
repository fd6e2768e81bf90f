"""The environment's comment on the action."""

from __future__ import annotations

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.sources import CandidateAttempts, register_source


@register_source(
    "immediate_feedback",
    title="The environment's answer to the action",
    attempts=CandidateAttempts.BEST_AND_WORST,
)
def immediate_feedback(attempt: Attempt, group: GroupView) -> Evidence | None:
    """What the environment said to the action; None where it said nothing."""
    feedback = attempt.step.feedback
    return None if feedback is None else Evidence(text=feedback)

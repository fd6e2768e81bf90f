"""The environment's comment on the action."""

from __future__ import annotations

from serl.hindsight.evidence import Evidence, GroupView, Try
from serl.hindsight.sources.registry import CandidateTries, register_source


@register_source(
    "immediate_feedback",
    title="The environment's answer to the action",
    tries=CandidateTries.BEST_AND_WORST,
)
def immediate_feedback(attempt: Try, group: GroupView) -> Evidence | None:
    feedback = attempt.step.feedback
    return None if feedback is None else Evidence(text=feedback)

"""How the attempt went on after the action."""

from __future__ import annotations

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.quoting import quote_steps
from serl.hindsight.registry import CandidateAttempts, register_source


@register_source(
    "future_trajectory",
    title="How the attempt went on after the action",
    attempts=CandidateAttempts.BEST_SUCCESS_AND_WORST_FAILURE,
)
def future_trajectory(attempt: Attempt, group: GroupView) -> Evidence | None:
    options = group.options
    later = quote_steps(attempt.trajectory.steps, attempt.step_index + 1, options.max_future_steps, options)
    return Evidence(quoted_steps=later) if later else None

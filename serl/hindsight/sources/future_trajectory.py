"""How the attempt went on after the action."""

from __future__ import annotations

from pydantic import NonNegativeInt

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.quoting import quote_steps
from serl.hindsight.sources import CandidateAttempts, register_source


@register_source(
    "future_trajectory",
    title="How the attempt went on after the action",
    attempts=CandidateAttempts.BEST_SUCCESS_AND_WORST_FAILURE,
)
def future_trajectory(
    attempt: Attempt, group: GroupView, *, max_steps: NonNegativeInt = 0
) -> Evidence | None:
    """The steps after the attempt, the first ``max_steps`` of them (0: all); None after a last step."""
    later = quote_steps(attempt.trajectory.steps, attempt.step_index + 1, max_steps, group.settings)
    return Evidence(quoted_steps=later) if later else None

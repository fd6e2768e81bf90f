"""How the attempt went on after the action."""

from __future__ import annotations

from serl.hindsight.evidence import Evidence, GroupView, Try
from serl.hindsight.quoting import quote_steps
from serl.hindsight.sources.registry import CandidateTries, register_source


@register_source(
    "future_trajectory",
    title="How the attempt went on after the action",
    tries=CandidateTries.BEST_SUCCESS_AND_WORST_FAILURE,
)
def future_trajectory(attempt: Try, group: GroupView) -> Evidence | None:
    options = group.options
    later = quote_steps(attempt.trajectory.steps, attempt.step_index + 1, options.max_future_steps, options)
    return Evidence(quoted_steps=later) if later else None

"""A successful attempt of the same group at the same task."""

from __future__ import annotations

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.quoting import quote_steps
from serl.hindsight.registry import CandidateAttempts, register_source


@register_source(
    "successful_sample",
    title="An attempt at this task that succeeded",
    attempts=CandidateAttempts.OWN_STEP_ONLY,
)
def successful_sample(attempt: Attempt, group: GroupView) -> Evidence | None:
    sample = group.successful_sample(attempt.trajectory)
    if sample is None:
        return None
    steps = quote_steps(sample.steps, 0, group.options.max_trajectory_steps, group.options)
    return Evidence(quoted_steps=steps)

"""A successful trajectory of the same group."""

from __future__ import annotations

from pydantic import NonNegativeInt

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.quoting import quote_steps
from serl.hindsight.sources import CandidateAttempts, register_source


@register_source(
    "successful_sample",
    title="An attempt at this task that succeeded",
    attempts=CandidateAttempts.OWN_STEP_ONLY,
    of_group=True,
)
def successful_sample(
    attempt: Attempt,
    group: GroupView,
    *,
    max_steps: NonNegativeInt = 0,
    exclude_own: bool = True,
) -> Evidence | None:
    """The group's first successful trajectory in sampling order; None where none succeeded.

    ``max_steps`` bounds how many of its first steps are quoted (0: all). ``exclude_own``: it is never the
    attempt's own.
    """
    own_id = attempt.trajectory.trajectory_id
    for trajectory in group.trajectories:
        if trajectory.success and not (exclude_own and trajectory.trajectory_id == own_id):
            return Evidence(quoted_steps=quote_steps(trajectory.steps, 0, max_steps, group.settings))
    return None

"""A failed trajectory of the same group. Not in the paper; hinted repair tells it where nothing succeeded."""

from __future__ import annotations

from pydantic import NonNegativeInt

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.quoting import quote_steps
from serl.hindsight.sources import CandidateAttempts, register_source


@register_source(
    "failed_sample",
    title="An attempt at this task that failed",
    attempts=CandidateAttempts.OWN_STEP_ONLY,
    of_group=True,
)
def failed_sample(attempt: Attempt, group: GroupView, *, max_steps: NonNegativeInt = 0) -> Evidence | None:
    """The group's failed trajectory with the highest reward but the attempt's own, the first of such.

    ``max_steps`` bounds how many of its first steps are quoted (0: all). None where no other one failed.
    """
    own_id = attempt.trajectory.trajectory_id
    others = [t for t in group.trajectories if not t.success and t.trajectory_id != own_id]
    if not others:
        return None
    best = max(others, key=lambda trajectory: trajectory.reward)
    return Evidence(quoted_steps=quote_steps(best.steps, 0, max_steps, group.settings))

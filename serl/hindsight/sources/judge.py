"""What a judge model said of the step's whole trajectory.

The two judge modes differ in what the judge is sent (`judge_request`), not in what the teacher reads.
"""

from __future__ import annotations

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.registry import CandidateAttempts, register_source

_TITLE = "A reviewer's assessment of this attempt"


@register_source("judge_current_traj", title=_TITLE, attempts=CandidateAttempts.OWN_STEP_ONLY)
@register_source(
    "judge_current_traj_on_successful_sample", title=_TITLE, attempts=CandidateAttempts.OWN_STEP_ONLY
)
def judge_text(attempt: Attempt, group: GroupView) -> Evidence | None:
    text = group.judge_texts.get(attempt.trajectory.trajectory_id)
    return None if text is None else Evidence(text=text)

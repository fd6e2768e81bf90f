"""What a judge model said of the attempt's whole trajectory."""

from __future__ import annotations

from serl.hindsight.evidence import Attempt, Evidence, GroupView
from serl.hindsight.sources import CandidateAttempts, register_source

TITLE = "A reviewer's assessment of this attempt"


@register_source("judge_current_traj", title=TITLE, attempts=CandidateAttempts.OWN_STEP_ONLY, judged=True)
def judge_text(attempt: Attempt, group: GroupView) -> Evidence | None:
    """The judge's text about the trajectory; None where it gave no usable answer."""
    text = group.judge_texts.get(attempt.trajectory.trajectory_id)
    return None if text is None else Evidence(text=text)

"""What a judge model that was also shown a success said of the attempt's whole trajectory.

What it is sent differs (see `serl.hindsight.judge_request`), not what the teacher reads.
"""

from __future__ import annotations

from serl.hindsight.sources import CandidateAttempts, register_source
from serl.hindsight.sources.judge_current_traj import TITLE, judge_text

register_source(
    "judge_current_traj_on_successful_sample",
    title=TITLE,
    attempts=CandidateAttempts.OWN_STEP_ONLY,
    judged=True,
    judge_compares=True,
)(judge_text)

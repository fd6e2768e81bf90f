"""What was seen after the action."""

from __future__ import annotations

from serl.hindsight.evidence import Evidence, GroupView, Try
from serl.hindsight.sources.registry import CandidateTries, register_source


@register_source(
    "next_observation",
    title="What was observed after the action",
    tries=CandidateTries.BEST_AND_WORST,
)
def next_observation(attempt: Try, group: GroupView) -> Evidence | None:
    observation = attempt.step.next_observation
    return None if observation is None else Evidence(text=observation)

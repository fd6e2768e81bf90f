"""What a judge model is asked about a trajectory; sending it is another module's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serl.config import HindsightSection
from serl.config.hindsight import judged_sources
from serl.hindsight.context import quote_text
from serl.hindsight.evidence import GroupView
from serl.hindsight.quoting import quote_steps
from serl.hindsight.sources import source_traits
from serl.types import Trajectory

_TASK_TITLE = "The task, as the agent first saw it"
_ATTEMPT_TITLE = "The attempt to review"
_REFERENCE_TITLE = "A successful attempt to compare with"
REQUEST_TITLES = (_TASK_TITLE, _ATTEMPT_TITLE, _REFERENCE_TITLE)

_INSTRUCTIONS = (
    "You review an agent's attempt at a task. Name the decisions that helped and those that did not, "
    "and say what the agent should do instead in those situations. Be concrete and brief."
)


def judge_mode(sources: Sequence[str]) -> str | None:
    """The one of ``sources`` that needs a judge; None: nobody is asked."""
    return next(iter(judged_sources(sources)), None)


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """What the judge is sent about one trajectory."""

    trajectory_id: str
    instructions: str
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages."""
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": self.text}]


def judge_request(
    trajectory: Trajectory, group: GroupView, mode: str, *, include_feedback: bool
) -> JudgeRequest:
    """The request about ``trajectory``: its first prompt, all its steps, its last observation and feedback.

    ``mode`` is a judged source. If its judge compares, the first other success of the group is added, else
    ``trajectory`` itself if it was successful, else nothing. Raises ValueError for a source that is unknown
    or not judged, and for a trajectory without steps.
    """
    traits = source_traits(mode)
    if not traits.judged:
        raise ValueError(f"the source {mode!r} needs no judge")
    if not trajectory.steps:
        raise ValueError(f"trajectory {trajectory.trajectory_id!r} has no step to judge")
    settings = group.settings
    blocks = [
        f"## {_TASK_TITLE}\n{trajectory.steps[0].prompt_text}",
        f"## {_ATTEMPT_TITLE}\n{_attempt_text(trajectory, settings, include_feedback)}",
    ]
    reference = _reference(trajectory, group) if traits.judge_compares else None
    if reference is not None:
        blocks.append(f"## {_REFERENCE_TITLE}\n{_attempt_text(reference, settings, include_feedback)}")
    return JudgeRequest(trajectory.trajectory_id, _INSTRUCTIONS, "\n\n".join(blocks))


def _reference(trajectory: Trajectory, group: GroupView) -> Trajectory | None:
    for other in group.trajectories:
        if other.success and other.trajectory_id != trajectory.trajectory_id:
            return other
    return trajectory if trajectory.success else None


def _attempt_text(trajectory: Trajectory, settings: HindsightSection, include_feedback: bool) -> str:
    lines = [quote_text(step) for step in quote_steps(trajectory.steps, 0, 0, settings)]
    observation = _last([step.next_observation for step in trajectory.steps])
    if observation is not None:
        lines.append(f"Last observation: {observation}")
    feedback = _last([step.feedback for step in trajectory.steps]) if include_feedback else None
    if feedback is not None:
        lines.append(f"Last feedback: {feedback}")
    lines.append(f"Outcome: {'success' if trajectory.success else 'failure'}")
    return "\n".join(lines)


def _last(values: Sequence[str | None]) -> str | None:
    return next((value for value in reversed(values) if value is not None), None)

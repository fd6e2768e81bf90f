"""What a judge model is asked about a trajectory; sending it is another module's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serl.hindsight.context import quote_text
from serl.hindsight.evidence import EvidenceOptions, GroupView
from serl.hindsight.quoting import quote_steps
from serl.types import Trajectory

JudgeMode = Literal["judge_current_traj", "judge_current_traj_on_successful_sample"]
JUDGE_MODES: tuple[JudgeMode, ...] = ("judge_current_traj", "judge_current_traj_on_successful_sample")

_TASK_TITLE = "The task, as the agent first saw it"
_ATTEMPT_TITLE = "The attempt to review"
_REFERENCE_TITLE = "A successful attempt to compare with"
REQUEST_TITLES = (_TASK_TITLE, _ATTEMPT_TITLE, _REFERENCE_TITLE)

_INSTRUCTIONS = (
    "You review an agent's attempt at a task. Name the decisions that helped and those that did not, "
    "and say what the agent should do instead in those situations. Be concrete and brief."
)


def judged_sources(sources: Sequence[str]) -> list[JudgeMode]:
    """Those of ``sources`` that need a judge."""
    return [mode for mode in JUDGE_MODES if mode in sources]


def judge_mode(sources: Sequence[str]) -> JudgeMode | None:
    """What the judge is asked where evidence comes from ``sources``; None: nothing."""
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
    trajectory: Trajectory, group: GroupView, mode: JudgeMode, *, include_feedback: bool
) -> JudgeRequest:
    """The request about ``trajectory``: its first prompt, all its steps, its last observation and feedback.

    ``judge_current_traj_on_successful_sample`` adds the first other success of the group, else the
    trajectory itself if it was successful, else nothing. Raises ValueError for an unknown mode or a
    trajectory without steps.
    """
    if mode not in JUDGE_MODES:
        raise ValueError(f"unknown judge mode {mode!r}; known: {', '.join(JUDGE_MODES)}")
    if not trajectory.steps:
        raise ValueError(f"trajectory {trajectory.trajectory_id!r} has no step to judge")
    blocks = [
        f"## {_TASK_TITLE}\n{trajectory.steps[0].prompt_text}",
        f"## {_ATTEMPT_TITLE}\n{_attempt_text(trajectory, group.options, include_feedback)}",
    ]
    if mode == "judge_current_traj_on_successful_sample":
        reference = _reference(trajectory, group)
        if reference is not None:
            text = _attempt_text(reference, group.options, include_feedback)
            blocks.append(f"## {_REFERENCE_TITLE}\n{text}")
    return JudgeRequest(trajectory.trajectory_id, _INSTRUCTIONS, "\n\n".join(blocks))


def _reference(trajectory: Trajectory, group: GroupView) -> Trajectory | None:
    for other in group.trajectories:
        if other.success and other.trajectory_id != trajectory.trajectory_id:
            return other
    return trajectory if trajectory.success else None


def _attempt_text(trajectory: Trajectory, options: EvidenceOptions, include_feedback: bool) -> str:
    lines = [quote_text(step) for step in quote_steps(trajectory.steps, 0, 0, options)]
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

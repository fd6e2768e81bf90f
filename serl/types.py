"""What travels between env runners, buffer, hindsight and learners.

Tokens are the ids the sampler produced; text beside them is for environments, people and hindsight
contexts, never for finding a token again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a task set: an id that never changes meaning, and the kind of task for the evaluations."""

    task_id: str
    task_type: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample a response.

    ``temperature`` 0 takes the likeliest token. ``max_tokens`` bounds the response. ``stop`` ends a response
    once its text contains one of the strings; the tokens of the string belong to the response. ``seed`` makes
    the request repeatable under the same weights (None: the engine's own stream of random numbers).
    """

    temperature: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None


class RequestRefused(ValueError):
    """The engine does not accept the request: a prompt that is too long, an impossible sampling setting."""


@dataclass(slots=True, frozen=True)
class VersionSpan:
    """Tokens ``[start, end)`` of a response were sampled under the weights ``weights_seq_no``."""

    start: int
    end: int
    weights_seq_no: int


@dataclass(slots=True, frozen=True)
class Completion:
    """One answer of the policy deployment.

    ``logprobs[i]`` is the natural log-probability of ``token_ids[i]`` at the sampling temperature.
    ``num_cached_tokens`` counts the prompt tokens that the engine's prefix cache already held.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    version_spans: tuple[VersionSpan, ...]
    num_cached_tokens: int = 0


@dataclass(slots=True, frozen=True)
class RolloutRequest:
    """What the task sampler hands to an env runner: play ``task`` as a rollout of the group ``group_id``.

    ``hint``: a context that the policy reads in every prompt (None: none), as in `Trajectory`.
    """

    task: Task
    group_id: str
    rollout_index: int
    seed: int
    evaluation: bool = False
    hint: str | None = None


@dataclass(slots=True)
class Step:
    """One turn: prompt ids in, response ids out, and what the environment answered.

    ``old_logprobs`` and ``action_mask`` have one entry per response id; ``action_mask`` marks the tokens
    that overlap the characters of the action. ``anchor`` is the observation the policy acted on.
    ``feedback`` is the environment's comment on the action (None: it made none), ``reward`` its reward;
    what an invalid action costs is not in it. ``tools``: what the prompt offered beside its messages.
    ``continues``: the index of the step whose prompt and response the prompt's ids begin with (None: none).
    """

    prompt_ids: list[int]
    response_ids: list[int]
    old_logprobs: list[float]
    action_mask: list[bool]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: str
    messages: tuple[dict[str, str], ...]
    response_text: str
    anchor: str
    action: str | None
    action_valid: bool
    feedback: str | None
    next_observation: str | None
    reward: float = 0.0
    num_cached_tokens: int = 0
    tools: tuple[dict[str, Any], ...] = ()
    continues: int | None = None

    @property
    def prompt_text(self) -> str:
        """The text of the last message of the prompt, the one that changes from step to step."""
        return self.messages[-1]["content"] if self.messages else ""

    @property
    def weights_seq_no(self) -> int:
        """The oldest weights that sampled a token of this step."""
        return min(span.weights_seq_no for span in self.version_spans)


@dataclass(slots=True)
class Trajectory:
    """One finished episode. ``reward`` is its return, ``success`` whether the task was solved.

    With a ``hint`` the responses were sampled after prompts that held it, and so were their log-probs; the
    steps' own prompts do not.
    """

    trajectory_id: str
    group_id: str
    rollout_index: int
    task: Task
    steps: list[Step]
    reward: float
    success: bool
    end_reason: str
    seconds: float = 0.0
    environment_seconds: float = 0.0
    hint: str | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def num_tokens(self) -> int:
        return sum(len(step.prompt_ids) + len(step.response_ids) for step in self.steps)

    def continued_step(self, step: Step) -> Step | None:
        """The step that ``step`` continues with messages of its own; None if it continues none.

        Its messages, the response to them, and then those of its own are the messages of ``step``.
        """
        if step.continues is None:
            return None
        before = self.steps[step.continues]
        num_before = len(before.messages)
        extends = len(step.messages) > num_before + 1 and step.messages[:num_before] == before.messages
        return before if extends else None

    @property
    def weights_seq_no(self) -> int | None:
        """The oldest weights that sampled a token of this trajectory; None if it has no step."""
        return min((step.weights_seq_no for step in self.steps), default=None)


@dataclass(slots=True)
class TrajectoryGroup:
    """All ``group_size`` trajectories of one task, in the order of their rollout indices."""

    group_id: str
    task: Task
    trajectories: list[Trajectory]

    @property
    def steps(self) -> list[Step]:
        """Trajectory by trajectory."""
        return [step for trajectory in self.trajectories for step in trajectory.steps]

    @property
    def num_tokens(self) -> int:
        return sum(trajectory.num_tokens for trajectory in self.trajectories)

    @property
    def weights_seq_no(self) -> int | None:
        """The oldest weights that sampled a token of this group; None if it has no step."""
        known = [t.weights_seq_no for t in self.trajectories if t.weights_seq_no is not None]
        return min(known, default=None)


class Sampled(Protocol):
    """What knows the oldest weights that sampled it: a trajectory, a group."""

    @property
    def weights_seq_no(self) -> int | None: ...


def staleness(sampled: Sampled, weights_seq_no: int) -> int:
    """How many updates the oldest weights that sampled it are behind ``weights_seq_no``; 0 without a step."""
    oldest = sampled.weights_seq_no
    return 0 if oldest is None else weights_seq_no - oldest


@dataclass(slots=True)
class TrainingRow:
    """One step as a learner trains on it; `serl.batch.rows.TrainingRows` holds many of them.

    ``advantage`` is that of every response token. ``teacher_prompt_ids`` is the prompt with evidence (None:
    no evidence, the weight stays 1), ``context`` the text of that evidence, and ``evidence_sources`` the
    names of the sources in it; the teacher scores the very same ``response_ids`` after it. A
    ``distilled`` row is drawn to the teacher's distributions, a ``recorded`` row gets a `TeacherRecord`.
    The ``old_logprobs`` of a ``hinted`` row are those under a prompt with a hint, which its own has not.
    """

    group_id: str
    trajectory_id: str
    step_index: int
    prompt_ids: list[int]
    response_ids: list[int]
    old_logprobs: list[float]
    action_mask: list[bool]
    advantage: float
    weights_seq_no: int
    teacher_prompt_ids: list[int] | None = None
    context: str | None = None
    evidence_sources: tuple[str, ...] = ()
    distilled: bool = False
    hinted: bool = False
    recorded: bool = False


@dataclass(slots=True, frozen=True)
class TeacherRecord:
    """What the learner made of one step, for people to look at; nothing is computed from it.

    ``advantage`` is the step's own, ``token_advantages`` those that entered the loss. ``context`` is the text
    that the teacher read beside the prompt (None: no evidence). The other lists have one entry per response
    token, None where the teacher weighed none: ``weights``; ``log_ratios``, what they come from before
    centring; and its two parts, None as a whole where the teacher was not scored without the context:
    ``context_effects`` = log π_T(a | context) − log π_T(a), ``log_ratios_without_context`` = log π_T(a) −
    log π_S(a).
    """

    advantage: float | None
    token_advantages: list[float | None]
    context: str | None
    weights: list[float | None]
    log_ratios: list[float | None]
    context_effects: list[float | None] | None
    log_ratios_without_context: list[float | None] | None


# By trajectory id and index of the step.
TeacherRecords = dict[tuple[str, int], TeacherRecord]

"""What hindsight knows about a step: the types that sources fill and contexts are rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from serl.types import Step, Trajectory

TrajectoryFormat = Literal["response", "observation_action"]


@dataclass(frozen=True, slots=True)
class EvidenceOptions:
    """What is quoted, and how.

    ``trajectory_format``: ``response`` quotes responses only, ``observation_action`` prompts too.
    ``exclude_own_success``: a step's own trajectory is never its successful sample. ``remove_thinking``
    drops ``<think>…</think>`` from quoted responses. ``max_trajectory_steps`` and ``max_future_steps``
    bound the first steps of the successful sample and the next steps of a future (0: all).
    ``anchor_similarity``: difflib ratio from which two observations are the same situation (None: equal).
    """

    trajectory_format: TrajectoryFormat
    exclude_own_success: bool
    remove_thinking: bool
    max_trajectory_steps: int
    max_future_steps: int
    anchor_similarity: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step seen as a try of an action: step ``step_index`` of the group's trajectory ``sample_index``."""

    trajectory: Trajectory
    sample_index: int
    step_index: int

    @property
    def step(self) -> Step:
        return self.trajectory.steps[self.step_index]

    @property
    def outcome(self) -> str:
        return "success" if self.trajectory.success else "failure"


@dataclass(frozen=True, slots=True)
class GroupView:
    """All that evidence may be drawn from: the trajectories of one group in sampling order.

    ``judge_texts``: what the judge said of a trajectory, by trajectory id.
    """

    trajectories: Sequence[Trajectory]
    options: EvidenceOptions
    judge_texts: Mapping[str, str | None] = field(default_factory=dict)

    def successful_sample(self, trajectory: Trajectory) -> Trajectory | None:
        """The first successful trajectory in sampling order; not ``trajectory`` if that is excluded."""
        for candidate in self.trajectories:
            own = candidate.trajectory_id == trajectory.trajectory_id
            if candidate.success and not (own and self.options.exclude_own_success):
                return candidate
        return None


@dataclass(frozen=True, slots=True)
class QuotedStep:
    """A step as a context quotes it; ``prompt`` None: the response only."""

    step_index: int
    prompt: str | None
    response: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence: a text, or quoted steps in order.

    Whoever asked the source fills in the rest: ``source``, its name, and ``about``, which of a candidate's
    attempts the evidence is from.
    """

    source: str = ""
    text: str = ""
    quoted_steps: tuple[QuotedStep, ...] = ()
    about: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One action that the group tried at an anchor, how it went, and evidence from its best and worst.

    ``best`` and ``worst`` are (``success`` or ``failure``, return). ``mean_return`` is rounded to 4 decimals.
    """

    action: str
    tried: int
    successes: int
    mean_return: float
    best: tuple[str, float]
    worst: tuple[str, float]
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedbackPair:
    """An action tried at an anchor and what the environment said to it."""

    action: str
    feedback: str


@dataclass(frozen=True, slots=True)
class StepEvidence:
    """All evidence of one step, in the order in which a context shows it; empty: the step gets no context.

    ``anchor_size``: how many steps of the group have the step's anchor, itself included; 0 if evidence is
    not gathered per anchor.
    """

    candidates: tuple[Candidate, ...] = ()
    feedback_pairs: tuple[FeedbackPair, ...] = ()
    parts: tuple[Evidence, ...] = ()
    anchor_size: int = 0

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources that gave any of it, each once."""
        found = [evidence.source for candidate in self.candidates for evidence in candidate.evidence]
        found += ["immediate_feedback"] if self.feedback_pairs else []
        return tuple(dict.fromkeys([*found, *(part.source for part in self.parts)]))

    def __bool__(self) -> bool:
        return bool(self.candidates or self.feedback_pairs or self.parts)

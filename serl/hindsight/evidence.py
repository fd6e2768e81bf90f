"""What hindsight knows about a step: the types that sources fill and contexts are rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serl.config import HindsightSection
from serl.types import Step, Trajectory

# The source whose texts are short enough to list for every attempt.
FEEDBACK_SOURCE = "immediate_feedback"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the trajectory of an attempt ended; ``reward`` is the whole trajectory's."""

    success: bool
    reward: float

    def __str__(self) -> str:
        return "success" if self.success else "failure"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Step ``step_index`` of the group's trajectory ``rollout_index``, seen as an attempt at its action."""

    trajectory: Trajectory
    rollout_index: int
    step_index: int

    @property
    def step(self) -> Step:
        return self.trajectory.steps[self.step_index]

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.trajectory.success, self.trajectory.reward)


@dataclass(frozen=True, slots=True)
class GroupView:
    """All that evidence may be drawn from: the trajectories of one group in sampling order.

    ``settings`` say how steps are quoted (`serl.hindsight.quoting`). ``judge_texts``: what the judge said of
    a trajectory, by trajectory id.
    """

    trajectories: Sequence[Trajectory]
    settings: HindsightSection
    judge_texts: Mapping[str, str | None] = field(default_factory=dict[str, str | None])


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
    """One action that the group tried at an anchor, how it went, and evidence of its best and worst attempt.

    ``tried`` counts attempts, ``successes`` those whose trajectory succeeded; ``mean_return`` is the mean
    reward of their trajectories, rounded to 4 decimals.
    """

    action: str
    tried: int
    successes: int
    mean_return: float
    best: Outcome
    worst: Outcome
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
        found += [FEEDBACK_SOURCE] if self.feedback_pairs else []
        return tuple(dict.fromkeys([*found, *(part.source for part in self.parts)]))

    def __bool__(self) -> bool:
        return bool(self.candidates or self.feedback_pairs or self.parts)

"""Anchor evidence: every action that the group tried from one situation, and how each of them turned out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serl.hindsight.anchors import anchor_clusters
from serl.hindsight.evidence import Attempt, Candidate, Evidence, FeedbackPair, GroupView, StepEvidence
from serl.hindsight.modes import HindsightMode
from serl.hindsight.sources import CandidateAttempts, EvidenceSource
from serl.rollout.actions import tagged_action_spans

_CANDIDATE_PHASES = (CandidateAttempts.BEST_AND_WORST, CandidateAttempts.BEST_SUCCESS_AND_WORST_FAILURE)


def comparable_action(response: str) -> str:
    """What attempts are compared by: the tag's content, else all of it, lower-cased, white space folded."""
    spans = tagged_action_spans(response)
    start, end = spans[0] if spans else (0, len(response))
    return " ".join(response[start:end].lower().split())


class AnchorEvidence:
    """The anchor clusters of one group, with the evidence of a cluster gathered once for all its steps."""

    def __init__(self, group: GroupView, sources: Sequence[EvidenceSource], mode: HindsightMode):
        self._group = group
        self._sources = sources
        self._mode = mode
        # Feedback alone is short: all of it is listed, try by try, instead of best and worst attempts.
        self._lists_feedback = mode.sources == ("immediate_feedback",)
        attempts = _attempts_by_step(group)
        clusters = anchor_clusters([t.step.anchor for t in attempts], group.options.anchor_similarity)
        self._members: dict[int, list[Attempt]] = {}
        self._cluster: dict[tuple[int, int], int] = {}
        for attempt, cluster in zip(attempts, clusters, strict=True):
            self._members.setdefault(cluster, []).append(attempt)
            self._cluster[attempt.sample_index, attempt.step_index] = cluster
        self._pairs: dict[int, tuple[FeedbackPair, ...]] = {}
        self._candidates: dict[tuple[int, tuple[str, ...]], tuple[Candidate, ...]] = {}

    def of(self, attempt: Attempt) -> StepEvidence:
        """The evidence of one step of the group."""
        cluster = self._cluster[attempt.sample_index, attempt.step_index]
        return replace(self._evidence(attempt, cluster), anchor_size=len(self._members[cluster]))

    def _evidence(self, attempt: Attempt, cluster: int) -> StepEvidence:
        if self._lists_feedback:
            if cluster not in self._pairs:
                self._pairs[cluster] = _feedback_pairs(self._members[cluster])
            return StepEvidence(feedback_pairs=self._pairs[cluster])
        if self._mode.combine == "all":
            return self._with_sources(attempt, cluster, self._sources)
        for source in self._sources:
            evidence = self._with_sources(attempt, cluster, [source])
            if evidence.parts or any(candidate.evidence for candidate in evidence.candidates):
                return evidence
        return self._with_sources(attempt, cluster, [])

    def _with_sources(
        self, attempt: Attempt, cluster: int, sources: Sequence[EvidenceSource]
    ) -> StepEvidence:
        asked = [source for source in sources if source.attempts in _CANDIDATE_PHASES]
        key = cluster, tuple(source.name for source in asked)
        if key not in self._candidates:
            self._candidates[key] = _candidates(self._members[cluster], asked, self._group)
        own = [source for source in sources if source.attempts is CandidateAttempts.OWN_STEP_ONLY]
        parts = [(source, source.collect(attempt, self._group)) for source in own]
        return StepEvidence(
            candidates=self._candidates[key],
            parts=tuple(replace(part, source=source.name) for source, part in parts if part is not None),
        )


def _attempts_by_step(group: GroupView) -> list[Attempt]:
    """All attempts of the group, earlier steps first, then in sampling order."""
    attempts = [
        Attempt(trajectory, sample_index, step_index)
        for sample_index, trajectory in enumerate(group.trajectories)
        for step_index in range(len(trajectory.steps))
    ]
    return sorted(attempts, key=lambda attempt: (attempt.step_index, attempt.sample_index))


def _attempts_by_action(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    """Attempts of each action, actions in the sampling order of their earliest-step try."""
    by_action: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_action.setdefault(comparable_action(attempt.step.response_text), []).append(attempt)
    order = sorted(by_action, key=lambda a: (by_action[a][0].sample_index, by_action[a][0].step_index))
    return {action: by_action[action] for action in order}


def _feedback_pairs(members: Sequence[Attempt]) -> tuple[FeedbackPair, ...]:
    with_feedback = [attempt for attempt in members if attempt.step.feedback is not None]
    pairs = [
        FeedbackPair(action, attempt.step.feedback)
        for action, attempts in _attempts_by_action(with_feedback).items()
        for attempt in attempts
        if attempt.step.feedback is not None
    ]
    return tuple(dict.fromkeys(pairs))


def _candidates(
    members: Sequence[Attempt], sources: Sequence[EvidenceSource], group: GroupView
) -> tuple[Candidate, ...]:
    by_action = _attempts_by_action(members)
    return tuple(_candidate(action, attempts, sources, group) for action, attempts in by_action.items())


def _candidate(
    action: str, attempts: Sequence[Attempt], sources: Sequence[EvidenceSource], group: GroupView
) -> Candidate:
    best, worst = _best(attempts), _worst(attempts)
    returns = [attempt.trajectory.reward for attempt in attempts]
    return Candidate(
        action=action,
        tried=len(attempts),
        successes=sum(attempt.trajectory.success for attempt in attempts),
        mean_return=round(sum(returns) / len(returns), 4),
        best=(best.outcome, best.trajectory.reward),
        worst=(worst.outcome, worst.trajectory.reward),
        evidence=_candidate_evidence(attempts, sources, group),
    )


def _candidate_evidence(
    attempts: Sequence[Attempt], sources: Sequence[EvidenceSource], group: GroupView
) -> tuple[Evidence, ...]:
    found: list[Evidence] = []
    for phase in _CANDIDATE_PHASES:
        asked = _asked_attempts(phase, attempts)
        for source in sources:
            if source.attempts is not phase:
                continue
            for about, attempt in asked.items():
                evidence = source.collect(attempt, group)
                if evidence is not None:
                    found.append(replace(evidence, source=source.name, about=about))
    return tuple(found)


def _asked_attempts(phase: CandidateAttempts, attempts: Sequence[Attempt]) -> dict[str, Attempt]:
    """The attempts that sources of ``phase`` are asked about, by what they are called."""
    if len(attempts) == 1:
        return {"only try": attempts[0]}
    if phase is CandidateAttempts.BEST_AND_WORST:
        return {"best try": _best(attempts), "worst try": _worst(attempts)}
    successes = [attempt for attempt in attempts if attempt.trajectory.success]
    failures = [attempt for attempt in attempts if not attempt.trajectory.success]
    asked = {"best successful try": _best(successes)} if successes else {}
    return asked | ({"worst failed try": _worst(failures)} if failures else {})


def _best(attempts: Sequence[Attempt]) -> Attempt:
    """The highest return, then the earlier step, then the earlier sample."""
    return min(attempts, key=lambda t: (-t.trajectory.reward, t.step_index, t.sample_index))


def _worst(attempts: Sequence[Attempt]) -> Attempt:
    """The lowest return, then the later step, then the later sample."""
    return min(attempts, key=lambda t: (t.trajectory.reward, -t.step_index, -t.sample_index))

"""Anchor evidence: every action that the group tried from one observation, and how it turned out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serl.config import HindsightSection
from serl.hindsight.anchors import anchor_clusters
from serl.hindsight.evidence import (
    FEEDBACK_SOURCE,
    Attempt,
    Candidate,
    Evidence,
    FeedbackPair,
    GroupView,
    StepEvidence,
)
from serl.hindsight.sources import CandidateAttempts, EvidenceSource
from serl.rollout.actions import tagged_action_spans

# Evidence of a candidate comes in this order.
_CANDIDATE_PHASES = (CandidateAttempts.BEST_AND_WORST, CandidateAttempts.BEST_SUCCESS_AND_WORST_FAILURE)


def comparable_action(response: str) -> str:
    """What attempts are compared by: the tag's content, else all of it, lower-cased, white space folded."""
    spans = tagged_action_spans(response)
    start, end = spans[0] if spans else (0, len(response))
    return " ".join(response[start:end].lower().split())


class AnchorEvidence:
    """The anchor clusters of one group, with the evidence of a cluster gathered once for all its steps."""

    def __init__(
        self,
        group: GroupView,
        attempts: Sequence[Sequence[Attempt]],
        sources: Sequence[EvidenceSource],
        settings: HindsightSection,
    ) -> None:
        """``attempts``: those of ``group``, [trajectory][step]."""
        self._group = group
        self._sources = sources
        self._combines_all = settings.combine == "all"
        # Feedback alone is short: that of every attempt is listed, not of the best and the worst only.
        self._lists_feedback = [source.name for source in sources] == [FEEDBACK_SOURCE]
        in_order = _in_clustering_order(attempts)
        clusters = anchor_clusters([attempt.step.anchor for attempt in in_order], settings.anchor_similarity)
        self._attempts: dict[int, list[Attempt]] = {}
        self._cluster: dict[tuple[int, int], int] = {}
        for attempt, cluster in zip(in_order, clusters, strict=True):
            self._attempts.setdefault(cluster, []).append(attempt)
            self._cluster[attempt.rollout_index, attempt.step_index] = cluster
        self._pairs: dict[int, tuple[FeedbackPair, ...]] = {}
        self._candidates: dict[tuple[int, tuple[str, ...]], tuple[Candidate, ...]] = {}

    def of(self, attempt: Attempt) -> StepEvidence:
        """The evidence of one step of the group."""
        cluster = self._cluster[attempt.rollout_index, attempt.step_index]
        return replace(self._evidence(attempt, cluster), anchor_size=len(self._attempts[cluster]))

    def _evidence(self, attempt: Attempt, cluster: int) -> StepEvidence:
        if self._lists_feedback:
            if cluster not in self._pairs:
                self._pairs[cluster] = _feedback_pairs(self._attempts[cluster])
            return StepEvidence(feedback_pairs=self._pairs[cluster])
        if self._combines_all:
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
            self._candidates[key] = _candidates(self._attempts[cluster], asked, self._group)
        own = [source for source in sources if source.attempts is CandidateAttempts.OWN_STEP_ONLY]
        parts = [(source, source.collect(attempt, self._group)) for source in own]
        return StepEvidence(
            candidates=self._candidates[key],
            parts=tuple(replace(part, source=source.name) for source, part in parts if part is not None),
        )


def _in_clustering_order(attempts: Sequence[Sequence[Attempt]]) -> list[Attempt]:
    """Earlier steps first, then in sampling order: a cluster's first attempt decides which others join it."""
    flat = [attempt for of_trajectory in attempts for attempt in of_trajectory]
    return sorted(flat, key=lambda attempt: (attempt.step_index, attempt.rollout_index))


def _attempts_by_action(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    """Attempts at each action, actions in the sampling order of their earliest attempt."""
    by_action: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_action.setdefault(comparable_action(attempt.step.response_text), []).append(attempt)
    earliest_in_sampling_order = sorted(
        by_action.items(), key=lambda item: (item[1][0].rollout_index, item[1][0].step_index)
    )
    return dict(earliest_in_sampling_order)


def _feedback_pairs(attempts: Sequence[Attempt]) -> tuple[FeedbackPair, ...]:
    with_feedback = [attempt for attempt in attempts if attempt.step.feedback is not None]
    pairs = [
        FeedbackPair(action, feedback)
        for action, of_action in _attempts_by_action(with_feedback).items()
        for attempt in of_action
        if (feedback := attempt.step.feedback) is not None
    ]
    return tuple(dict.fromkeys(pairs))


def _candidates(
    attempts: Sequence[Attempt], sources: Sequence[EvidenceSource], group: GroupView
) -> tuple[Candidate, ...]:
    by_action = _attempts_by_action(attempts).items()
    return tuple(_candidate(action, of_action, sources, group) for action, of_action in by_action)


def _candidate(
    action: str, attempts: Sequence[Attempt], sources: Sequence[EvidenceSource], group: GroupView
) -> Candidate:
    returns = [attempt.trajectory.reward for attempt in attempts]
    return Candidate(
        action=action,
        tried=len(attempts),
        successes=sum(attempt.trajectory.success for attempt in attempts),
        mean_return=round(sum(returns) / len(returns), 4),
        best=_best(attempts).outcome,
        worst=_worst(attempts).outcome,
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
    """The attempts that sources of ``phase`` are asked about, by what a context calls them.

    Tiny policies that ship with SERL were trained on these words.
    """
    if len(attempts) == 1:
        return {"only try": attempts[0]}
    if phase is CandidateAttempts.BEST_AND_WORST:
        return {"best try": _best(attempts), "worst try": _worst(attempts)}
    successes = [attempt for attempt in attempts if attempt.trajectory.success]
    failures = [attempt for attempt in attempts if not attempt.trajectory.success]
    asked = {"best successful try": _best(successes)} if successes else {}
    return asked | ({"worst failed try": _worst(failures)} if failures else {})


def _best(attempts: Sequence[Attempt]) -> Attempt:
    """The highest reward, then the earlier step, then the earlier rollout."""
    return min(attempts, key=lambda a: (-a.trajectory.reward, a.step_index, a.rollout_index))


def _worst(attempts: Sequence[Attempt]) -> Attempt:
    """The lowest reward, then the later step, then the later rollout."""
    return min(attempts, key=lambda a: (a.trajectory.reward, -a.step_index, -a.rollout_index))

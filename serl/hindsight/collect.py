"""Evidence for every step of one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serl.config import HindsightSection
from serl.hindsight.candidates import AnchorEvidence
from serl.hindsight.evidence import Attempt, Evidence, GroupView, StepEvidence
from serl.hindsight.sources import EvidenceSource, evidence_source


def collect_evidence(group: GroupView, settings: HindsightSection) -> list[list[StepEvidence]]:
    """What the sources of ``settings`` know of each step, ``[trajectory][step]`` in the order of ``group``.

    An empty `StepEvidence` means that the step gets no context.
    """
    sources = [evidence_source(name, settings.args.get(name, {})) for name in settings.sources]
    attempts = [
        [Attempt(trajectory, rollout_index, step_index) for step_index in range(len(trajectory.steps))]
        for rollout_index, trajectory in enumerate(group.trajectories)
    ]
    if settings.granularity == "anchor":
        anchors = AnchorEvidence(group, attempts, sources, settings)
        return [[anchors.of(attempt) for attempt in of_trajectory] for of_trajectory in attempts]
    needs_all = settings.combine == "all"
    return [
        [step_evidence(attempt, group, sources, needs_all) for attempt in of_trajectory]
        for of_trajectory in attempts
    ]


def step_evidence(
    attempt: Attempt, group: GroupView, sources: Sequence[EvidenceSource], needs_all: bool
) -> StepEvidence:
    """Evidence of all ``sources`` or of none, else of the first that has some."""
    parts: list[Evidence] = []
    for source in sources:
        evidence = source.collect(attempt, group)
        if evidence is not None:
            parts.append(replace(evidence, source=source.name))
        if evidence is not None and not needs_all:
            break
        if evidence is None and needs_all:
            return StepEvidence()
    return StepEvidence(parts=tuple(parts))

"""Evidence for every step of one group."""

from __future__ import annotations

from dataclasses import replace

from serl.hindsight.candidates import AnchorEvidence
from serl.hindsight.evidence import Attempt, Evidence, GroupView, StepEvidence
from serl.hindsight.modes import HindsightMode
from serl.hindsight.sources import EvidenceSource, evidence_source


def collect_evidence(group: GroupView, mode: HindsightMode) -> list[list[StepEvidence]]:
    """What ``mode`` has on each step, ``[trajectory][step]`` in the order of ``group``.

    An empty `StepEvidence` means that the step gets no context.
    Raises ValueError for an unknown source, granularity or combination, or for no source at all.
    """
    if not mode.sources:
        raise ValueError("hindsight needs at least one evidence source")
    if mode.combine not in ("all", "first_available"):
        raise ValueError(f"unknown combination {mode.combine!r}; known: all, first_available")
    sources = [evidence_source(name) for name in mode.sources]
    if mode.granularity == "step":
        return [
            [_step_evidence(attempt, group, sources, mode) for attempt in _attempts(group, sample_index)]
            for sample_index in range(len(group.trajectories))
        ]
    if mode.granularity == "anchor":
        anchors = AnchorEvidence(group, sources, mode)
        return [
            [anchors.of(attempt) for attempt in _attempts(group, sample_index)]
            for sample_index in range(len(group.trajectories))
        ]
    raise ValueError(f"unknown granularity {mode.granularity!r}; known: step, anchor")


def _attempts(group: GroupView, sample_index: int) -> list[Attempt]:
    trajectory = group.trajectories[sample_index]
    return [Attempt(trajectory, sample_index, step_index) for step_index in range(len(trajectory.steps))]


def _step_evidence(
    attempt: Attempt, group: GroupView, sources: list[EvidenceSource], mode: HindsightMode
) -> StepEvidence:
    parts: list[Evidence] = []
    for source in sources:
        evidence = source.collect(attempt, group)
        if evidence is not None:
            parts.append(replace(evidence, source=source.name))
        if evidence is not None and mode.combine == "first_available":
            break
        if evidence is None and mode.combine == "all":
            return StepEvidence()
    return StepEvidence(parts=tuple(parts))

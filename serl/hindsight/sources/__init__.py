"""Evidence sources, one a file; importing this package registers the built-in ones."""

from serl.hindsight.sources import (
    future_trajectory,
    immediate_feedback,
    judge,
    next_observation,
    successful_sample,
)
from serl.hindsight.sources.registry import (
    CandidateTries,
    EvidenceSource,
    UnknownSourceError,
    evidence_source,
    register_source,
    source_names,
)

__all__ = [
    "CandidateTries",
    "EvidenceSource",
    "UnknownSourceError",
    "evidence_source",
    "future_trajectory",
    "immediate_feedback",
    "judge",
    "next_observation",
    "register_source",
    "source_names",
    "successful_sample",
]

"""Evidence sources, one a file; importing this package registers the built-in ones."""

from serl.hindsight.registry import (
    CandidateAttempts,
    EvidenceSource,
    UnknownSourceError,
    evidence_source,
    register_source,
    source_names,
)
from serl.hindsight.sources import (
    future_trajectory,
    immediate_feedback,
    judge,
    next_observation,
    successful_sample,
)

__all__ = [
    "CandidateAttempts",
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

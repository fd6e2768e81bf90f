"""The table of evidence sources.

A source is a function ``(Attempt, GroupView) -> Evidence | None``: what it knows of the attempt, or nothing.
To add one, in any module that gets imported:

    @register_source("recovery", title="How the attempt recovered", attempts=CandidateAttempts.BEST_AND_WORST)
    def recovery(attempt: Attempt, group: GroupView) -> Evidence | None:
        ...
        return Evidence(text=...)

and name it in the config's ``hindsight.sources``: ``recovery`` if something imports the module anyway, else
``my_package.my_module:recovery``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from serl.hindsight.evidence import Attempt, Evidence, GroupView

Collect = Callable[[Attempt, GroupView], Evidence | None]


class UnknownSourceError(ValueError):
    """No evidence source has the name."""


class CandidateAttempts(Enum):
    """Which attempts of a candidate action a source is asked about, where evidence is gathered per anchor."""

    BEST_AND_WORST = "the best try and the worst"
    BEST_SUCCESS_AND_WORST_FAILURE = "the best of the successful attempts and the worst of the failed"
    OWN_STEP_ONLY = "none of them: the evidence belongs to the step itself"


@dataclass(frozen=True, slots=True)
class EvidenceSource:
    name: str
    title: str
    attempts: CandidateAttempts
    collect: Collect


_SOURCES: dict[str, EvidenceSource] = {}


def register_source(name: str, *, title: str, attempts: CandidateAttempts) -> Callable[[Collect], Collect]:
    """Makes the decorated function known as source ``name``; ``title`` heads its evidence in a context.

    Raises ValueError if the name is taken.
    """

    def register(collect: Collect) -> Collect:
        if name in _SOURCES:
            raise ValueError(f"evidence source {name!r} exists already")
        _SOURCES[name] = EvidenceSource(name, title, attempts, collect)
        return collect

    return register


def source_names() -> list[str]:
    return sorted(_SOURCES)


def evidence_source(name: str) -> EvidenceSource:
    """The source ``name``; of ``module:name``, the module is imported first.

    Raises UnknownSourceError, and what importing the module raises.
    """
    module, _, own = name.rpartition(":")
    if module:
        importlib.import_module(module)
    if own not in _SOURCES:
        raise UnknownSourceError(f"unknown evidence source {name!r}; known: {', '.join(source_names())}")
    return _SOURCES[own]

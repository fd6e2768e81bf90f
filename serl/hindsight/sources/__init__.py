"""Evidence sources: what hindsight knows about an attempt. The modules of this package are the built-in ones.

A source is a function ``(Attempt, GroupView, *, its options) -> Evidence | None``; None: it knows nothing.
One of your own needs no change here:

    @register_source("recovery", title="How the attempt recovered", attempts=CandidateAttempts.BEST_AND_WORST)
    def recovery(attempt: Attempt, group: GroupView, *, max_steps: PositiveInt = 2) -> Evidence | None:
        ...

In an experiment, if that is ``my_package/my_module.py``:

    hindsight:
      sources: ["my_package.my_module:recovery"]
      args: {"my_package.my_module:recovery": {max_steps: 3}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from serl.config.registry import SOURCES
from serl.hindsight.evidence import Attempt, Evidence, GroupView

Source = TypeVar("Source", bound=Callable[..., Evidence | None])


class CandidateAttempts(Enum):
    """Which attempts at a candidate action a source is asked about, where evidence is gathered per anchor."""

    BEST_AND_WORST = "the best attempt and the worst"
    BEST_SUCCESS_AND_WORST_FAILURE = "the best of the successful attempts and the worst of the failed"
    OWN_STEP_ONLY = "none of them: the evidence belongs to the step itself"


@dataclass(frozen=True, slots=True)
class SourceTraits:
    """What a registration says of a source.

    ``title`` heads its evidence in a context. ``judged``: it reads what a judge model said of a trajectory.
    ``judge_compares``: the judge is also sent a successful trajectory to compare with. ``of_group``: it says
    nothing of the attempt itself, so that one which has not begun can be told (`serl.hindsight.hints`).
    """

    title: str
    attempts: CandidateAttempts
    judged: bool = False
    judge_compares: bool = False
    of_group: bool = False


@dataclass(frozen=True, slots=True)
class EvidenceSource:
    """A source with its options filled in. ``name`` is the short one, without a module."""

    name: str
    attempts: CandidateAttempts
    collect: Callable[[Attempt, GroupView], Evidence | None]


def register_source(
    name: str,
    *,
    title: str,
    attempts: CandidateAttempts,
    judged: bool = False,
    judge_compares: bool = False,
    of_group: bool = False,
) -> Callable[[Source], Source]:
    """Makes the decorated function known as source ``name``; the rest as in `SourceTraits`.

    Raises ValueError if another source has the name, TypeError for an option without annotation.
    """
    return SOURCES.register(
        name,
        title=title,
        attempts=attempts,
        judged=judged,
        judge_compares=judge_compares,
        of_group=of_group,
    )


def source_traits(name: str) -> SourceTraits:
    """Of the source ``name``; raises as `serl.config.registry.Registry.get` does."""
    return SourceTraits(**SOURCES.get(name).traits)


def evidence_source(name: str, args: Mapping[str, Any]) -> EvidenceSource:
    """The source ``name`` with the options ``args``.

    Raises as `serl.config.registry.Registry.get` does, and pydantic.ValidationError for wrong options.
    """
    entry = SOURCES.get(name)
    return EvidenceSource(entry.name, source_traits(name).attempts, entry.bind(args))

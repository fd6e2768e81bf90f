"""What was measured, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serl.hindsight.credit import Auc
from tools.credit.hinted import HintedGap
from tools.credit.measuring import Credit
from tools.report.statistics import mean_interval

_NAME_WIDTH = 62


@dataclass(slots=True)
class Report:
    """By the name of the evidence; ``student`` is of the policy's own log-prob, ``title`` says of what."""

    title: str
    student: Credit
    sources: dict[str, Credit] = field(default_factory=dict)
    hinted: dict[str, HintedGap] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values; null where there was nothing to compare."""
        return {
            "sources": {name: _credit_json(credit) for name, credit in self.sources.items()},
            "student": _credit_json(self.student),
            "hinted": {
                name: {
                    "plain": sum(gap.plain) / len(gap.plain),
                    "hinted": sum(gap.hinted) / len(gap.hinted),
                    "games": len(gap.plain),
                }
                for name, gap in self.hinted.items()
            },
        }


def credit_heading(student: Credit) -> Iterator[str]:
    """The lines above `credit_line`, and the student's own."""
    counts = ", ".join(
        f"{auc.num_progress} against {auc.num_others} {name}"
        for name, auc in (("idle", student.idle), ("idle or inadmissible", student.rest))
    )
    yield f"AUC, progress {counts}; 95 % intervals over groups"
    yield (
        f"{'evidence':{_NAME_WIDTH}} share  steps  {'idle':20}  {'idle, A > 0':20}  {'idle, A < 0':20}  "
        f"idle or inadmissible"
    )
    yield credit_line("(none: the policy's own log-prob)", student)


def credit_line(name: str, credit: Credit) -> str:
    num_steps = credit.rest.num_progress + credit.rest.num_others
    aucs = (credit.idle, credit.idle_positive, credit.idle_negative, credit.rest)
    return f"{name:{_NAME_WIDTH}} {credit.share:5.2f}  {num_steps:5d}  " + "  ".join(
        f"{_auc_text(auc):20}" for auc in aucs
    )


def hinted_heading() -> str:
    return f"{'evidence in the prompt':{_NAME_WIDTH}} plain  hinted  gap, 95 %"


def hinted_line(name: str, gap: HintedGap) -> str:
    plain, hinted = sum(gap.plain) / len(gap.plain), sum(gap.hinted) / len(gap.hinted)
    gain = mean_interval(gap.gains)
    return (
        f"{name:{_NAME_WIDTH}} {plain:.3f}  {hinted:.3f}   {gain.mean:+.3f} ± {gain.half_width:.3f}, "
        f"{gain.count} games"
    )


def _auc_text(auc: Auc) -> str:
    if math.isnan(auc.value):
        return "nothing to compare"
    return f"{auc.value:.3f} ({auc.low:.3f}, {auc.high:.3f})"


def _credit_json(credit: Credit) -> dict[str, float | None]:
    return {
        "auc_idle": _finite(credit.idle.value),
        "auc_idle_positive": _finite(credit.idle_positive.value),
        "auc_rest": _finite(credit.rest.value),
        "share": credit.share,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

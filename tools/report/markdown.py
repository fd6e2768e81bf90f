"""Tables and estimates as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tools.report.statistics import Estimate


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def shown(estimate: Estimate, signed: bool = False) -> str:
    mean = f"{estimate.mean:+.3f}" if signed else f"{estimate.mean:.3f}"
    return mean if math.isnan(estimate.half_width) else f"{mean} ± {estimate.half_width:.3f}"

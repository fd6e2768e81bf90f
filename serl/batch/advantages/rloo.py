"""RLOO: the mean of the others as baseline (arXiv 2402.14740)."""

from __future__ import annotations

from torch import Tensor

from serl.batch.advantages import StepRows, register_estimator
from serl.batch.step_rows import Across, group_statistics, relative


@register_estimator("rloo")
def rloo(rows: StepRows, *, across: Across = "steps") -> tuple[Tensor, dict[str, float]]:
    """A = (r − mean) · n / (n − 1), [rows], which equals r minus the mean of the group's n − 1 other values.

    ``across``: n counts the group's ``steps`` or its ``trajectories``; with n = 1 there is no other value and
    A = r.
    """
    statistics = group_statistics(rows, across)
    factor = statistics.count / (statistics.count - 1.0).clamp(min=1.0)
    return relative(rows.rewards, statistics, normalize_std=False) * factor, {}

"""GRPO: reward relative to the group (arXiv 2402.03300); without the std, Dr.GRPO (arXiv 2503.20783)."""

from __future__ import annotations

from torch import Tensor

from serl.batch.advantages import StepRows, register_estimator
from serl.batch.step_rows import Across, group_statistics, relative


@register_estimator("grpo")
def grpo(
    rows: StepRows, *, across: Across = "steps", normalize_std: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """A = (r − mean) / (std + 1e-6) over the group, [rows].

    ``across``: the group's values are those of all its ``steps``, or one a trajectory (``trajectories``).
    ``normalize_std: false`` leaves the division out (Dr.GRPO).
    """
    return relative(rows.rewards, group_statistics(rows, across), normalize_std), {}

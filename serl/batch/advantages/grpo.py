"""GRPO: reward relative to the group (arXiv 2402.03300); without the std, Dr.GRPO (arXiv 2503.20783)."""

from __future__ import annotations

from torch import Tensor

from serl.batch.step_rows import Across, StepRows, group_statistics, relative


def grpo(rows: StepRows, *, across: Across, normalize_std: bool) -> tuple[Tensor, dict[str, float]]:
    """A = (r − mean) / (std + 1e-6) over the group, [rows].

    ``normalize_std`` False leaves the division out (Dr.GRPO).
    """
    return relative(rows.rewards, group_statistics(rows, across), normalize_std), {}

"""GRPO for Pass@k: only the best trajectory of a group is reinforced, by its lead over the second best.

Follows the Pass@k variant of the veRL library, a special case of arXiv 2503.19595.
"""

# pyright: reportUnknownMemberType=false
# torch does not say what `unique` and `tolist` return.

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from serl.batch.advantages import StepRows, register_estimator
from serl.batch.step_rows import STD_EPS, Across, group_statistics


@register_estimator("grpo_passk")
def grpo_passk(
    rows: StepRows, *, across: Across = "steps", normalize_std: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """A = best − second best on the first row of the group's best trajectory, 0 on all other rows, [rows].

    Divided by the group's std + 1e-6 if ``normalize_std``, taken over all ``steps`` or one row a trajectory
    as ``across`` says. A group of one trajectory gets 0.
    """
    advantages = torch.zeros_like(rows.rewards, dtype=torch.float64)
    statistics = group_statistics(rows, across)
    first_rows = rows.first_of_trajectory.nonzero().squeeze(1)
    for group in cast("list[int]", rows.groups.unique().tolist()):
        members = first_rows[rows.groups[first_rows] == group]
        if members.numel() < 2:
            continue
        (best, second), (winner, _) = rows.rewards[members].double().topk(2)
        row = members[winner]
        advantages[row] = (best - second) / (statistics.std[row] + STD_EPS if normalize_std else 1.0)
    return advantages, {}

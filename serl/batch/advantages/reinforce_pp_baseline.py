"""REINFORCE++ with group baseline: group-centred rewards, whitened over tokens (arXiv 2501.03262)."""

from __future__ import annotations

import torch
from torch import Tensor

from serl.batch.advantages import StepRows, register_estimator
from serl.batch.step_rows import Across, group_statistics, relative

_VARIANCE_EPS = 1e-8


@register_estimator("reinforce_pp_baseline", needs_batch=True)
def reinforce_pp_baseline(rows: StepRows, *, across: Across = "steps") -> tuple[Tensor, dict[str, float]]:
    """A = (b − mean) / sqrt(var + 1e-8), [rows], where b = r − group mean.

    The group mean is over all ``steps`` or over one value a trajectory, as ``across`` says.
    Mean and (unbiased) variance of b are taken over all response tokens of the batch: a row counts
    ``num_tokens`` times. Whitening shifts every row, so zero-variance groups may get a small advantage too;
    a batch without variance gets 0.
    """
    centered = relative(rows.rewards, group_statistics(rows, across), normalize_std=False)
    tokens = rows.num_tokens.double()
    total = tokens.sum()
    if total <= 1:
        return torch.zeros_like(centered), {}
    mean = (centered * tokens).sum() / total
    variance = ((centered - mean) ** 2 * tokens).sum() / (total - 1.0)
    return (centered - mean) / (variance + _VARIANCE_EPS).sqrt(), {}

"""Group-relative advantages: one estimator a file, one table of names.

An estimator is a pure function ``(rows, *, its options) -> (advantages [rows], metrics)``. To add one, write
the function and `register_estimator` it; it then is a value of the config's ``advantage.estimator``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from serl.batch.advantages.gigpo import gigpo
from serl.batch.advantages.grpo import grpo
from serl.batch.advantages.grpo_passk import grpo_passk
from serl.batch.advantages.reinforce_pp_baseline import reinforce_pp_baseline
from serl.batch.advantages.rloo import rloo
from serl.batch.step_rows import StepRows, cluster_statistics

Estimator = Callable[..., tuple[Tensor, dict[str, float]]]
_ESTIMATORS: dict[str, Estimator] = {
    "gigpo": gigpo,
    "grpo": grpo,
    "grpo_passk": grpo_passk,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "rloo": rloo,
}

__all__ = ["Estimator", "StepRows", "estimator_names", "group_advantages", "register_estimator"]


def register_estimator(name: str, estimator: Estimator) -> None:
    """Makes ``estimator`` known as ``name``; raises ValueError if the name is taken."""
    if name in _ESTIMATORS:
        raise ValueError(f"advantage estimator {name!r} exists already")
    _ESTIMATORS[name] = estimator


def estimator_names() -> list[str]:
    return sorted(_ESTIMATORS)


def group_advantages(
    rows: StepRows, estimator: str, options: Mapping[str, Any]
) -> tuple[Tensor, dict[str, float]]:
    """The advantage of every step row, float32 [rows], and metrics of the batch.

    ``rows`` holds whole groups; ``options`` are the fields of the config's advantage section, of which an
    estimator receives those that it names. Metrics: ``num_groups``, ``num_zero_variance_groups`` (all of
    the group's trajectories got the same reward, so it teaches nothing), ``advantage_mean``,
    ``advantage_std`` and ``positive_fraction`` over the rows, and the estimator's own. Raises ValueError for
    an unknown estimator or no row, TypeError if an option that it needs is missing.
    """
    if estimator not in _ESTIMATORS:
        raise ValueError(f"unknown advantage estimator {estimator!r}; known: {', '.join(estimator_names())}")
    function = _ESTIMATORS[estimator]
    named = inspect.signature(function).parameters
    if rows.rewards.numel() == 0:
        raise ValueError("advantages need at least one step row")
    advantages, metrics = function(rows, **{key: value for key, value in options.items() if key in named})
    return advantages.float(), _batch_metrics(rows, advantages.float()) | metrics


def _batch_metrics(rows: StepRows, advantages: Tensor) -> dict[str, float]:
    num_groups = rows.groups.unique().numel()
    spread = cluster_statistics(rows.rewards, rows.groups).spread
    return {
        "num_groups": float(num_groups),
        "num_zero_variance_groups": float(num_groups - rows.groups[spread].unique().numel()),
        "advantage_mean": float(advantages.mean()),
        "advantage_std": float(advantages.std(correction=0)),
        "positive_fraction": float((advantages > 0).float().mean()),
    }

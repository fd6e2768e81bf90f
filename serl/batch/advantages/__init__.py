"""Group-relative advantages: one estimator a file, each named after its file.

An estimator is a pure function ``(rows, *, its options) -> (advantages [rows], metrics)``, registered under
the name that an experiment gives as ``advantage.estimator``; its keyword-only parameters are what may stand
under ``advantage.args``. One of your own, in a module of yours, is named ``package.module:name``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from serl.batch.step_rows import StepRows
from serl.config import AdvantageSection
from serl.config.registry import ESTIMATORS

__all__ = ["StepRows", "estimate_advantages", "needs_batch", "register_estimator"]

Estimator = TypeVar("Estimator", bound=Callable[..., tuple[Tensor, dict[str, float]]])


def register_estimator(name: str, needs_batch: bool = False) -> Callable[[Estimator], Estimator]:
    """Makes the decorated function an advantage estimator.

    It is called once for each group, so what it gives a group may not depend on others; with ``needs_batch``,
    once for a whole batch.
    """
    return ESTIMATORS.register(name, needs_batch=needs_batch)


def needs_batch(section: AdvantageSection) -> bool:
    """Whether the section's estimator is to be called for a whole batch, and not for each of its groups."""
    return ESTIMATORS.get(section.estimator).traits["needs_batch"]


def estimate_advantages(rows: StepRows, section: AdvantageSection) -> tuple[Tensor, dict[str, float]]:
    """The advantage of every step row, float32 [rows], and the estimator's own metrics.

    ``rows`` hold whole groups. Raises ValueError without any row.
    """
    if rows.rewards.numel() == 0:
        raise ValueError("advantages need at least one step row")
    advantages, metrics = ESTIMATORS.get(section.estimator).bind(section.args)(rows)
    return advantages.float(), metrics

"""Policy losses on packed response tokens: one loss a file, each named after its file.

A loss is a pure function ``(tokens, *, its options) -> (scalar, metrics)``, registered under the name that an
experiment gives as ``loss.name``; its keyword-only parameters are what may stand under ``loss.args``. One of
your own, in a module of yours, is named ``package.module:name``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from serl.config import Aggregation, LossSection
from serl.config.registry import LOSSES
from serl.learner.loss_terms import (
    Denominators,
    LossTokens,
    entropy_bonus,
    kl_loss,
    truncated_importance_weights,
)

__all__ = [
    "Denominators",
    "LossTokens",
    "entropy_bonus",
    "kl_loss",
    "policy_loss",
    "register_policy_loss",
    "truncated_importance_weights",
]

PolicyLoss = TypeVar("PolicyLoss", bound=Callable[..., tuple[Tensor, dict[str, Tensor]]])


def register_policy_loss(
    name: str, aggregation: Aggregation | None = None
) -> Callable[[PolicyLoss], PolicyLoss]:
    """Makes the decorated function a policy loss.

    ``aggregation``: the only one it is defined with; an experiment with another is refused.
    """
    return LOSSES.register(name, aggregation=aggregation)


def policy_loss(tokens: LossTokens, section: LossSection) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch that the section names, and its metrics, detached.

    With the whole batch's denominators in ``tokens``, losses and metrics of its micro-batches (on any shard)
    sum to the batch's means.
    """
    return LOSSES.get(section.name).bind(section.args)(tokens)

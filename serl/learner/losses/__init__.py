"""Policy losses on packed response tokens: one loss a file, one table of names.

A loss is a pure function ``(tokens, denominators, *, its options) -> (scalar, metrics)``. To add one, write
the function and `register_policy_loss` it; it then is a value of the config's ``loss.name``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from serl.learner.losses.aggregation import Aggregation, Denominators, LossTokens, aggregate
from serl.learner.losses.entropy import entropy_bonus
from serl.learner.losses.gspo import gspo
from serl.learner.losses.importance import truncated_importance_weights
from serl.learner.losses.kl import kl_loss, kl_per_token
from serl.learner.losses.ppo_clip import ppo_clip

PolicyLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
_POLICY_LOSSES: dict[str, PolicyLoss] = {"gspo": gspo, "ppo_clip": ppo_clip}

__all__ = [
    "Aggregation",
    "Denominators",
    "LossTokens",
    "PolicyLoss",
    "aggregate",
    "entropy_bonus",
    "kl_loss",
    "kl_per_token",
    "policy_loss",
    "policy_loss_names",
    "register_policy_loss",
    "truncated_importance_weights",
]


def register_policy_loss(name: str, loss: PolicyLoss) -> None:
    """Makes ``loss`` known as ``name``; raises ValueError if the name is taken."""
    if name in _POLICY_LOSSES:
        raise ValueError(f"policy loss {name!r} exists already")
    _POLICY_LOSSES[name] = loss


def policy_loss_names() -> list[str]:
    return sorted(_POLICY_LOSSES)


def policy_loss(
    tokens: LossTokens, name: str, options: Mapping[str, Any], denominators: Denominators | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss ``name`` of one micro-batch, and its metrics.

    ``options`` are the fields of the config's loss section, of which a loss receives those that it names.
    With the whole batch's ``denominators``, losses and metrics of its micro-batches (on any shard) sum to the
    batch's means; None: ``tokens`` are the whole batch.
    Raises ValueError for an unknown loss, TypeError if an option that it needs is missing.
    """
    if name not in _POLICY_LOSSES:
        raise ValueError(f"unknown policy loss {name!r}; known: {', '.join(policy_loss_names())}")
    function = _POLICY_LOSSES[name]
    named = inspect.signature(function).parameters
    chosen = {key: value for key, value in options.items() if key in named}
    return function(tokens, denominators or Denominators.of(tokens), **chosen)

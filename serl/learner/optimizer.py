"""AdamW, its learning rate, and the step that leaves non-finite gradients out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from serl.config import LearnerSection
from serl.learner.parallel import whole

# One overflow can be bad luck; several in a row are a broken run.
MAX_CONSECUTIVE_SKIPPED_STEPS = 5


class NonFiniteGradientsError(RuntimeError):
    """Gradients were not finite in several optimizer steps in a row."""


def make_optimizer(parameters: Sequence[nn.Parameter], settings: LearnerSection) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with decoupled weight decay on every parameter."""
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def learning_rate(settings: LearnerSection, weights_seq_no: int, num_updates: int) -> float:
    """The learning rate of update ``weights_seq_no`` (0, 1, …) of ``num_updates``.

    It rises in a straight line to ``lr`` over the warmup. Then it is constant, or with the linear schedule it
    falls by equal amounts and would be 0 at update ``num_updates``, which is not made any more.
    """
    warmup = settings.lr_warmup_updates
    if weights_seq_no < warmup:
        return settings.lr * (weights_seq_no + 1) / warmup
    if settings.lr_schedule == "constant":
        return settings.lr
    return settings.lr * max(0, num_updates - weights_seq_no) / max(1, num_updates - warmup)


class OptimizerStep:
    """Clips by the global norm, steps, clears the gradients; counts the steps that it had to skip."""

    def __init__(self, optimizer: torch.optim.Optimizer, grad_clip: float) -> None:
        self._optimizer = optimizer
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._grad_clip = grad_clip
        self.num_consecutive_skipped = 0

    def apply(self, lr: float) -> tuple[float, bool]:
        """Returns the global gradient norm before clipping and whether the step was taken.

        Weights and optimizer state stay as they are if the norm is not finite; raises
        NonFiniteGradientsError when that happens too often in a row.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = float(whole(nn.utils.clip_grad_norm_(self._parameters, self._grad_clip)))
        finite = math.isfinite(norm)
        if finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.num_consecutive_skipped = 0 if finite else self.num_consecutive_skipped + 1
        if self.num_consecutive_skipped >= MAX_CONSECUTIVE_SKIPPED_STEPS:
            raise NonFiniteGradientsError(
                f"the gradient norm was {norm} in {self.num_consecutive_skipped} optimizer steps in a row; "
                "lower learner.lr or learner.grad_clip, or look at the log-prob metrics"
            )
        return norm, finite

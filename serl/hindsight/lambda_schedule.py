"""The mixing coefficient λ of the teacher weights, as a function of one clock."""

from __future__ import annotations

from serl.config import HindsightSection


def effective_lambda(mixing_lambda: float, lambda_decay_steps: int, weights_seq_no: int) -> float:
    """λ after ``weights_seq_no`` policy updates, decaying linearly to zero (SERL, arXiv 2605.19447).

    λ(u) = mixing_lambda · max(0, 1 − u / lambda_decay_steps); ``lambda_decay_steps`` 0 means no decay.
    The clock is the count of policy updates of the whole experiment and belongs in its checkpoint.
    Raises ValueError if ``lambda_decay_steps`` or ``weights_seq_no`` is negative.
    """
    if lambda_decay_steps < 0 or weights_seq_no < 0:
        raise ValueError(
            f"negative clock: lambda_decay_steps {lambda_decay_steps}, weights_seq_no {weights_seq_no}"
        )
    if lambda_decay_steps == 0:
        return mixing_lambda
    return mixing_lambda * max(0.0, 1.0 - weights_seq_no / lambda_decay_steps)


def teacher_lambda(settings: HindsightSection, weights_seq_no: int) -> float:
    """λ of the update that trains on weights ``weights_seq_no``; 0 without hindsight.

    At 0 nothing of the teacher is needed.
    """
    if not settings.enabled:
        return 0.0
    return effective_lambda(settings.mixing_lambda, settings.lambda_decay_steps, weights_seq_no)

"""The mixing coefficient λ of the teacher weights, as a function of one clock."""

from __future__ import annotations


def effective_lambda(mixing_lambda: float, lambda_decay_steps: int, update_step: int) -> float:
    """λ after ``update_step`` policy updates, decaying linearly to zero (SERL, arXiv 2605.19447).

    λ(u) = mixing_lambda · max(0, 1 − u / lambda_decay_steps); ``lambda_decay_steps`` 0 means no decay.
    The clock is the count of policy updates of the whole experiment and belongs in its checkpoint.
    Raises ValueError if ``lambda_decay_steps`` or ``update_step`` is negative.
    """
    if lambda_decay_steps < 0 or update_step < 0:
        raise ValueError(
            f"negative clock: lambda_decay_steps {lambda_decay_steps}, update_step {update_step}"
        )
    if lambda_decay_steps == 0:
        return mixing_lambda
    return mixing_lambda * max(0.0, 1.0 - update_step / lambda_decay_steps)

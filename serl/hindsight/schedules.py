"""What the teacher counts for, as functions of one clock: λ of its weights, β of the distillation."""

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
    """λ of the update that trains on weights ``weights_seq_no``; 0 where advantages are not reweighted."""
    if not settings.reweights or settings.control == "progress":
        return 0.0
    return effective_lambda(settings.mixing_lambda, settings.lambda_decay_steps, weights_seq_no)


def progress_lambda(settings: HindsightSection, weights_seq_no: int) -> float:
    """λ of that update where the environment weighs advantages in place of the teacher, else 0."""
    if not settings.reweights or settings.control != "progress":
        return 0.0
    return effective_lambda(settings.mixing_lambda, settings.lambda_decay_steps, weights_seq_no)


def distill_coefficient(settings: HindsightSection, weights_seq_no: int) -> float:
    """β of the update that trains on weights ``weights_seq_no``; 0 where nothing is distilled."""
    if not settings.distills:
        return 0.0
    distill = settings.distill
    return effective_lambda(distill.coefficient, distill.coefficient_decay_steps, weights_seq_no)


def teaches(settings: HindsightSection, weights_seq_no: int) -> bool:
    """Whether the update that trains on weights ``weights_seq_no`` needs a teacher, and evidence for it."""
    return max(teacher_lambda(settings, weights_seq_no), distill_coefficient(settings, weights_seq_no)) > 0.0


def has_teacher_copy(settings: HindsightSection) -> bool:
    """Whether a run begins with a teacher that has weights of its own."""
    return teaches(settings, 0) and settings.teacher != "live"

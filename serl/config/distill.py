"""The section ``hindsight.distill`` of an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from serl.config.section import Section

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Gate = Literal["none", "sigmoid"]
Route = Literal["all", "failed", "zero_variance"]


class DistillSection(Section):
    """The divergence of the student from the teacher with evidence, at action tokens; read where
    ``hindsight.objective`` distills."""

    divergence: Divergence = "forward_kl"
    """``forward_kl``, from teacher to student: the student learns the average of what the evidence says;
    ``reverse_kl``, from student to teacher: it learns one of its modes; ``jsd``, half of each to their
    mixture."""

    coefficient: float = Field(default=0.1, ge=0.0)
    """Times the mean divergence over the routed action tokens is added to the loss, at the first update."""

    coefficient_decay_steps: int = Field(default=0, ge=0)
    """Updates after which the coefficient has decayed linearly to 0; 0: it stays."""

    gate: Gate = "none"
    """``sigmoid``: a token counts the more, the likelier the sampled token is to the teacher."""

    gate_sharpness: PositiveFloat = 1.0
    """κ of the gate σ(κΔ), where Δ is the teacher–student log-ratio in nats."""

    route: Route = "all"
    """Steps that are distilled: ``all``, those of ``failed`` attempts, or those of ``zero_variance`` groups,
    whose advantages are 0."""

    top_k: PositiveInt = 1024
    """Likeliest tokens of the teacher that are compared one by one; all others are compared as one."""

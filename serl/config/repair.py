"""The section ``hindsight.repair`` of an experiment."""

from __future__ import annotations

from pydantic import Field

from serl.config.section import Section


class RepairSection(Section):
    """Hinted repair: where the first rollouts of a group fail, the last ones are played with evidence of
    them in the prompt; what succeeds is trained without it."""

    num_rollouts: int = Field(default=0, ge=0)
    """The last rollouts of every group, which begin once the first ones have ended; 0: none waits."""

    max_success: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the first rollouts that may have succeeded where the last ones are to be helped."""

    sources: tuple[str, ...] = Field(
        default=("successful_sample", "failed_sample"), strict=False, min_length=1
    )
    """Evidence for them, of the first source that has some. Each must speak of a group, not of a step."""

"""The sections of what goes along with training: ``evaluation``, ``checkpoint``, ``cluster``, ``logging``."""

from __future__ import annotations

import re

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from serl.config.section import Section


class EvaluationSection(Section):
    """Held-out tasks, a fixed set of them, every task once."""

    split: str = "valid_seen"
    """The environment's name of the tasks; it must not be the split that is trained on."""
    num_tasks: int = Field(default=0, ge=0)
    """How many of them; 0: all."""
    interval: int = Field(default=0, ge=0)
    """Iterations from one evaluation to the next; 0: none in between."""
    at_start: bool = True
    """Whether there is one before the first update."""
    at_end: bool = True
    """Whether there is one after the last update."""
    temperature: float = Field(default=0.4, ge=0.0)
    """Of sampling in evaluations; 0: the most probable token."""
    timeout_s: PositiveFloat = 3600.0
    """Seconds that one evaluation may take; then the run fails."""


class CheckpointSection(Section):
    """Checkpoints inside the run directory."""

    interval: int = Field(default=10, ge=0)
    """Iterations from one checkpoint to the next; 0: one at the end only."""
    keep: PositiveInt = 2
    """How many of the newest stay on disk."""
    timeout_s: PositiveFloat = 600.0
    """Seconds that learners may take to write or read one, and that a run waits for one to be complete."""
    copy_to: str | None = None
    """A URI such as ``s3://bucket/runs`` below which each is kept as well, in a folder of the run's name; a
    run whose copies cannot be written ends. ``serl-run --resume-or-start`` fetches the newest where the run
    directory has none. fsspec opens it, with the package that it needs. Null: no copies."""

    @field_validator("copy_to")
    @classmethod
    def _is_a_uri(cls, copy_to: str | None) -> str | None:
        if copy_to is not None and not re.match(r"[\w+.-]+://", copy_to):
            raise ValueError("must be a URI such as s3://bucket/runs")
        return copy_to


class ClusterSection(Section):
    """The Ray cluster: the one that `serl-run` starts when it joins none, and what runs on either."""

    dashboard: bool = True
    """Whether Ray's dashboard is started, which takes memory and a part of a core."""
    env_vars: list[str] = Field(default_factory=list)
    """Names of environment variables that actors on other hosts get from the driver, beside those that SERL
    knows of: for environments and agents of your own."""
    placement_timeout_s: PositiveFloat = 900.0
    """Seconds that a cluster which was joined may take to have room for all actors, new nodes included."""
    heartbeat_timeout_s: float = Field(default=60.0, ge=1.0)
    """Seconds within which every actor must answer a heartbeat; one that does not is killed and replaced."""


class LoggingSection(Section):
    """What a run directory records beside metrics, and what a terminal shows."""

    trajectories_per_iteration: int = Field(default=8, ge=0)
    """Trajectories recorded for `python -m tools.inspect`; 0: none."""
    trajectories_interval: PositiveInt = 1
    """Iterations from one that is recorded to the next, for a long run whose file would be full early."""
    credit: bool = False
    """Whether recorded trajectories are played again to measure if the teacher's log-ratio tells progress
    from the rest: the metrics ``credit/…``. Needs an environment that can measure progress; ALFWorld takes
    2 ms a step."""
    max_trajectories_mib: PositiveFloat = 64.0
    """Their file ends at this size, in MiB."""
    progress_bar: bool = True
    """A line that shows how far the iteration is, where the output is a terminal."""

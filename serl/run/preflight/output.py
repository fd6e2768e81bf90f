"""Where the run would write."""

from __future__ import annotations

from collections.abc import Iterator

from serl.config import ExperimentConfig
from serl.config.paths import UnknownPathError, blocked_by, expanded_path
from serl.run.preflight.finding import Finding


def examine_output(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Whether ``output_dir`` can be written."""
    try:
        folder = expanded_path(experiment.output_dir)
    except UnknownPathError as error:
        yield Finding("wrong", "output", f"output_dir = {error}")
        return
    if blocked := blocked_by(folder):
        yield Finding("wrong", "output", f"output_dir = {experiment.output_dir!r}: cannot write in {blocked}")

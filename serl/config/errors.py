"""`ConfigError`: what is wrong with an experiment, one sentence a problem."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """An experiment that cannot run. ``problems`` has one sentence for each thing to change."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

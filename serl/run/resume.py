"""Which keys of an experiment may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serl.config import ExperimentConfig
from serl.config.errors import ConfigError
from serl.config.wording import shown

# The checkpoint holds what follows from these: weights, task order, groups, optimizer state.
FIXED_KEYS = (
    "seed",
    "model.path",
    "env.name",
    "env.args",
    "env.train_split",
    "training.group_size",
)


def check_resumable(recorded: ExperimentConfig, resumed: ExperimentConfig) -> list[str]:
    """The keys that changed, as ``key: old -> new``; raises ConfigError for one that must not change."""
    before, after = dict(_leaves(recorded.model_dump())), dict(_leaves(resumed.model_dump()))
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    refused = [
        f"{key} = {shown(after.get(key))} contradicts the run to be resumed: {shown(before.get(key))}"
        for key in changed
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED_KEYS)
    ]
    if refused:
        raise ConfigError(refused)
    return [f"{key}: {shown(before.get(key))} -> {shown(after.get(key))}" for key in changed]


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

"""Environment variables of the driver that its actors on other hosts need too.

Processes of a cluster that was joined inherit nothing from the driver. The judge's key is not among them: the
driver alone asks the judge.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from serl.config import ExperimentConfig
from serl.config.paths import named_variables
from serl.run.preflight.finding import Finding

# What environments and libraries read: where data and caches are, and whether a hub may be asked.
READ_VARIABLES = (
    "ALFWORLD_DATA",
    "WEBSHOP_DATA",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)


def forwarded_variables(experiment: ExperimentConfig) -> dict[str, str]:
    """Those of this process that are set, of: what is read for data and caches, what the experiment's values
    name as ``$NAME``, and ``cluster.env_vars``."""
    texts = _texts(experiment.model_dump(mode="json"))
    in_values = [name for text in texts for name in named_variables(text)]
    names = dict.fromkeys((*READ_VARIABLES, *in_values, *experiment.cluster.env_vars))
    return {name: os.environ[name] for name in names if name in os.environ}


def examine_variables(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Whether those of ``cluster.env_vars`` are set."""
    for name in experiment.cluster.env_vars:
        if name not in os.environ:
            yield Finding("wrong", "environment", f"cluster.env_vars: {name} is not set")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)

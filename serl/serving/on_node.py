"""Tasks of Ray that run on one node, beside whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on_node(function: Callable[..., Any], node_id: str) -> Any:
    """``function`` as a task of the node alone: ``on_node(function, node_id).remote(…)``."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there)

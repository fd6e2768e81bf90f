"""Private parts of Ray itself, as seen in Ray 2.60.0."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SEEN_IN = "2.60.0"


@contextmanager
def loopback_is_the_nodes_address() -> Iterator[None]:
    """A cluster that `ray.init` starts meanwhile has a node at 127.0.0.1, and listens nowhere else.

    Ray does so on Windows and macOS, for the sake of their firewalls. Elsewhere `ray.init` puts the machine's
    address in the place of a loopback address that it is given.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def forget_token() -> None:
    """Lets Ray read its token anew, from where the environment says now; it reads one once in a process."""
    from ray import _raylet

    raylet: Any = _raylet  # has no stubs
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def variables_of_submitted_job() -> set[str]:
    """Environment variables that `ray job submit` gave this process's job; `ray.init` refuses them once more.

    The runtime context, which is public, has them only after `ray.init`.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return set((submitted.get("runtime_env") or {}).get("env_vars") or {})

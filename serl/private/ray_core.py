"""Private parts of Ray itself, as seen in Ray 2.60.0."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SEEN_IN = "2.60.0"

_GCS_TIMEOUT_S = 10.0


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


@contextmanager
def ends_within(timeout_s: float, what: str) -> Iterator[None]:
    """Raises TimeoutError, which says ``what``, if its body takes longer; in the main thread alone.

    For waits inside of libraries that take no deadline. Ray waits in C, where KeyboardInterrupt is the one
    exception that a signal's handler can end it with.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_late = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal is_late
        is_late = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    except KeyboardInterrupt:
        if is_late:
            raise TimeoutError(what) from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def forget_token() -> None:
    """Lets Ray read its token anew, from where the environment says now; it reads one once in a process."""
    from ray import _raylet

    raylet: Any = _raylet  # has no stubs
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def started_its_cluster() -> bool:
    """Whether `ray.init` has started the cluster in this process, and not joined one."""
    from ray._private import worker

    node: Any = worker._global_node
    return node is not None and node.is_head()


def free_resources_of_nodes() -> list[dict[str, float]]:
    """What is free on each node that lives: `ray.available_resources` adds all nodes up."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """What an autoscaler is doing: the nodes that it has asked for; whether it has none that would help."""

    num_nodes_coming: int
    has_no_such_nodes: bool


def find_autoscaler() -> Autoscaler | None:
    """What the autoscaler (version 2) of the cluster that was joined says; None if none has said anything.

    `ray status` alone says so in public, as a text.
    """
    from ray import _raylet, get_runtime_context
    from ray.core.generated import autoscaler_pb2

    private: Any = _raylet  # has no stubs
    reply: Any = autoscaler_pb2.GetClusterStatusReply()  # pyright: ignore[reportAttributeAccessIssue]
    client = private.GcsClient(get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=_GCS_TIMEOUT_S))
    state = reply.autoscaling_state
    if not state.autoscaler_state_version:
        return None
    asked = sum(request.count for request in state.pending_instance_requests)
    return Autoscaler(asked + len(state.pending_instances), bool(state.infeasible_gang_resource_requests))


def variables_of_submitted_job() -> set[str]:
    """Environment variables that `ray job submit` gave this process's job; `ray.init` refuses them once more.

    The runtime context, which is public, has them only after `ray.init`.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return set((submitted.get("runtime_env") or {}).get("env_vars") or {})

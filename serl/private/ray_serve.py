"""Private parts of Ray Serve, as seen in Ray 2.60.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

SEEN_IN = "2.60.0"

# Sends the requests of one session to one replica. Serve's other routers know no session, and this one is
# experimental.
SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

# In the environment of a replica: its code runs on the loop that takes the requests, not in a thread of its
# own. A deployment has no option for it.
CODE_ON_REPLICAS_OWN_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}


def route_on_callers_loop(handle: DeploymentHandle[Any]) -> None:
    """Makes ``handle`` route on the asyncio loop that calls it; to be called before anything else of it.

    Otherwise the router has a thread of its own, which doubles the cost of a call, and the public
    `DeploymentHandle.options` cannot say otherwise.
    """
    handle._init(_run_router_in_separate_loop=False)


def session_stream(handle: DeploymentHandle[Any], method: str, session_id: str) -> DeploymentHandle[Any]:
    """The generator ``method`` of the deployment, for the calls of one session; its messages come by value.

    By default every message becomes an object of Ray's store first; the option against it has no public name.
    """
    return handle.options(method_name=method, stream=True, session_id=session_id, _by_reference=False)

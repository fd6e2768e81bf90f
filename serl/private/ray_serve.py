"""Private parts of Ray Serve, as seen in Ray 2.60.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.serve.handle import DeploymentHandle

SEEN_IN = "2.60.0"

_ANSWER_TIMEOUT_S = 60.0

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


def serve_controller() -> ActorHandle:
    """The actor that keeps replicas alive; there is one a cluster. Raises ValueError before Serve's start."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def serve_replica(name: str) -> ActorHandle:
    """The actor of a replica; ``name`` is its full name. Raises ValueError if there is none."""
    import ray
    from ray.serve._private.constants import SERVE_NAMESPACE

    return ray.get_actor(name, namespace=SERVE_NAMESPACE)


def http_proxy_address() -> tuple[str, int] | None:
    """Host and port that Serve's HTTP proxies listen at, None if there are none.

    Options given to `serve.start` do not count where Serve runs already, and nothing public says which do.
    """
    import ray
    from ray.serve.config import ProxyLocation

    options: Any = ray.get(serve_controller().get_http_config.remote(), timeout=_ANSWER_TIMEOUT_S)
    if options.host is None or options.location == ProxyLocation.Disabled:
        return None
    return options.host, options.port


def listen_on_the_nodes_address() -> None:
    """Makes this process's replica take calls by value at its node's address only, not at every address.

    To be called in a deployment's constructor: Serve opens the port afterwards, and has no option for it.
    """
    import ray
    from ray.serve._private import replica as module

    replica: Any = module
    listen = replica.add_port_to_grpc_server

    def listen_on_the_node(server: Any, address: str) -> int:
        host = ray.util.get_node_ip_address()
        return listen(server, f"[{host}]:0" if ":" in host else f"{host}:0")

    replica.add_port_to_grpc_server = listen_on_the_node


def session_stream(handle: DeploymentHandle[Any], method: str, session_id: str) -> DeploymentHandle[Any]:
    """The generator ``method`` of the deployment, for the calls of one session; its messages come by value.

    By default every message becomes an object of Ray's store first; the option against it has no public name.
    """
    return handle.options(method_name=method, stream=True, session_id=session_id, _by_reference=False)

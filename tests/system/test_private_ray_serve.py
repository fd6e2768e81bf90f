"""That the private parts of Ray Serve still are what `serl.private.ray_serve` takes them for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import psutil
import ray
from ray import serve

from serl.private.ray_core import find_autoscaler, free_resources_of_nodes, started_its_cluster
from serl.private.ray_serve import (
    CODE_ON_REPLICAS_OWN_LOOP,
    SEEN_IN,
    SESSION_ROUTER,
    listen_on_the_nodes_address,
    route_on_callers_loop,
    session_stream,
)

CONTRACT = f"seen in Ray {SEEN_IN}, this is {ray.__version__}"
NUM_SESSIONS = 12


def speaker_class() -> type:
    """Made in a function, so that it travels to its replicas by value."""

    class Speaker:
        def __init__(self) -> None:
            listen_on_the_nodes_address()

        async def listens_at(self) -> list[str]:
            sockets = psutil.Process().net_connections("tcp")
            return [each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN]

        async def speak(self, num_words: int) -> AsyncIterator[tuple[str, str]]:
            replica = serve.get_replica_context().replica_id.unique_id
            for _ in range(num_words):
                yield replica, threading.current_thread().name

    return Speaker


async def converse(application: str) -> tuple[Any, dict[int, list[tuple[str, str]]]]:
    """A handle after use, and what each session heard in three calls of two words."""
    handle = serve.get_deployment_handle("speaker", application)
    route_on_callers_loop(handle)
    heard: dict[int, list[tuple[str, str]]] = {}
    for session in range(NUM_SESSIONS):
        stream = session_stream(handle, "speak", str(session))
        assert vars(stream.handle_options)["_by_reference"] is False, CONTRACT
        for _ in range(3):
            words: Any = stream.remote(2)
            heard.setdefault(session, []).extend([word async for word in words])
    return handle, heard


def test_sessions_keep_their_replica_which_listens_at_its_node_and_the_callers_loop_is_enough(
    ray_cluster: None,
) -> None:
    deployment = serve.deployment(speaker_class()).options(
        name="speaker",
        num_replicas=2,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": CODE_ON_REPLICAS_OWN_LOOP}},
        request_router_config={"request_router_class": SESSION_ROUTER},
    )
    anyone = serve.run(deployment.bind(), name="contract", route_prefix=None)
    try:
        hosts = anyone.listens_at.remote().result(timeout_s=60.0)
        handle, heard = asyncio.run(converse("contract"))
    finally:
        serve.delete("contract")
    node = ray.util.get_node_ip_address()
    assert any(host.removeprefix("::ffff:") == node for host in hosts), f"{hosts}: {CONTRACT}"
    assert type(handle._router).__name__ == "CurrentLoopRouter", CONTRACT
    assert all(len(words) == 6 for words in heard.values())
    replicas = [{replica for replica, _ in words} for words in heard.values()]
    assert all(len(own) == 1 for own in replicas), f"a session met several replicas: {CONTRACT}"
    assert len(set.union(*replicas)) == 2, f"all sessions met one replica: {CONTRACT}"
    threads = {thread for words in heard.values() for _, thread in words}
    assert not any("user_code" in thread for thread in threads), f"{threads}: {CONTRACT}"


def test_what_a_cluster_of_ones_own_has_free_and_that_nobody_adds_nodes(ray_cluster: None) -> None:
    assert started_its_cluster(), CONTRACT
    (free,) = free_resources_of_nodes()
    assert 0 <= free["CPU"] <= 8, CONTRACT
    assert find_autoscaler() is None, CONTRACT

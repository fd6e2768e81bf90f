"""A Ray cluster on this machine that is closed to others: on loopback only, and with a token of its own."""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any

import ray

from serl.private.ray_core import forget_token, loopback_is_the_nodes_address
from serl.run.processes import descendants, kill_descendants

logger = logging.getLogger(__name__)

_KILL_TIMEOUT_S = 10.0
# For its dashboard Ray's GCS remembers 100,000 tasks, until which it grows for hours.
_NUM_REMEMBERED_TASKS = "5000"

# What listens beside Ray's processes: torch's and NCCL's groups, and vLLM's workers.
_ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}


def start_closed_cluster(**options: Any) -> Any:
    """Starts a cluster with ``options`` of `ray.init`, and returns Ray's context.

    Nothing of it listens on another interface than loopback, and it answers only those who have its token.
    The token is new, and in memory alone: where, RAY_AUTH_TOKEN_PATH says to this process and its children,
    and only their user can read it there.
    """
    os.environ.update(_ON_LOOPBACK)
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", _NUM_REMEMBERED_TASKS)
    _have_fresh_token()
    before = descendants()
    try:
        return _start(options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        logger.warning("Ray did not start within its 30 s, which nothing can change; starting it once more")
        ray.shutdown()
        # Ray leaves what it had started, whose end would be taken for that of the cluster.
        kill_descendants(_KILL_TIMEOUT_S, spare=before)
        return _start(options)


def _start(options: dict[str, Any]) -> Any:
    with loopback_is_the_nodes_address():
        # Without an address Ray would join a cluster that `ray start` has left running on this machine.
        return ray.init(address="local", dashboard_host="127.0.0.1", log_to_driver=False, **options)


def _have_fresh_token() -> None:
    # Ray turns authentication on for clusters of its own, unless these are set.
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    memory = os.memfd_create("ray-token")
    os.write(memory, secrets.token_hex(32).encode())
    os.environ["RAY_AUTH_TOKEN_PATH"] = f"/proc/{os.getpid()}/fd/{memory}"
    forget_token()

"""A Ray cluster that is to be joined: whether it answers, and what it has."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from serl.run.preflight.finding import Finding

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 30.0
# Ray's patience with a cluster that refuses it.
_FEW_ATTEMPTS = {"RAY_NUM_REDIS_GET_RETRIES": "3"}
# Ray raises what it raises for a cluster that is away; its C++ code tells the reason on standard error.
_WRONG_TOKEN = "InvalidAuthToken"
_NO_TOKEN = "AuthenticationError: "
_HOST_AND_PORT = re.compile(r"(?:ray://)?(?P<host>[^/:\s]+|\[[^\]]+\]):(?P<port>\d+)")

# In a process of its own: Ray waits for minutes for a cluster that does not answer, uninterruptibly.
_ASK = """
import json, logging, sys
import ray
from serl.private.ray_core import find_autoscaler
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    answer = {
        "resources": ray.cluster_resources(),
        "free": ray.available_resources(),
        "gpus": [node.get("GPU", 0.0) for node in nodes],
        "grows": find_autoscaler() is not None,
    }
except Exception as error:
    answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
print()
print(json.dumps(answer))
"""


@dataclass(frozen=True, slots=True)
class ClusterResources:
    """What a cluster has in all and free, how many GPUs each of its nodes has, whether nodes may be added."""

    num_cpus: float
    num_gpus: float
    gpus_of_nodes: tuple[float, ...]
    free_cpus: float
    free_gpus: float
    grows: bool = False


class AddressError(RuntimeError):
    """No cluster answers at an address; the text says why."""


def examine_address(address: str) -> list[Finding]:
    """Whether the cluster at ``address`` can be joined; what it has is not asked, for it may grow."""
    try:
        cluster_resources(address)
    except AddressError as error:
        return [Finding("missing", "resources", str(error))]
    return []


def cluster_resources(address: str) -> ClusterResources:
    """What the cluster at ``address`` has. Raises AddressError within seconds if it does not say."""
    _check_anybody_listens(address)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, address],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ANSWER_SECONDS,
            env=os.environ | _FEW_ATTEMPTS,
        )
    except subprocess.TimeoutExpired:
        raise AddressError(
            f"--address {address}: no answer of a Ray cluster within {_ANSWER_SECONDS:g} s"
        ) from None
    try:
        answer: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise AddressError(f"--address {address}: Ray ended with {asked.returncode} joining it") from None
    if "error" in answer:
        error = str(answer["error"])
        if _WRONG_TOKEN in asked.stderr:
            raise AddressError(f"--address {address}: {_token_to_give()}")
        if error.startswith(_NO_TOKEN):
            raise AddressError(f"--address {address}: {error.removeprefix(_NO_TOKEN).partition('. ')[0]}")
        raise AddressError(f"--address {address}: it cannot be joined: {error[:500]}")
    resources, free = Counter[str](answer["resources"]), Counter[str](answer["free"])
    return ClusterResources(
        num_cpus=resources["CPU"],
        num_gpus=resources["GPU"],
        gpus_of_nodes=tuple(answer["gpus"]),
        free_cpus=free["CPU"],
        free_gpus=free["GPU"],
        grows=answer["grows"],
    )


def _token_to_give() -> str:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return (
            "the cluster asks for a token: export RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or "
            "the path of its file in RAY_AUTH_TOKEN_PATH; where neither is set, ~/.ray/auth_token is read"
        )
    given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    return f"the cluster has another token than the one in {(*given, '~/.ray/auth_token')[0]}"


def _check_anybody_listens(address: str) -> None:
    """Raises AddressError; an ``address`` without host and port, such as ``auto``, is for Ray to find."""
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        return
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise AddressError(
            f"--address {address}: nothing answers there ({error}); give the address that `ray start --head` "
            "printed, or leave --address out to start a cluster on this machine"
        ) from error

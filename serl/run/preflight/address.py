"""A Ray cluster that is to be joined: whether it answers, and what it has."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from serl.run.preflight.finding import Finding

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 30.0
_HOST_AND_PORT = re.compile(r"(?:ray://)?(?P<host>[^/:\s]+|\[[^\]]+\]):(?P<port>\d+)")

# In a process of its own: Ray waits for minutes for a cluster that does not answer, uninterruptibly.
_ASK = """
import json, logging, sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
    answer = {"resources": ray.cluster_resources()}
except Exception as error:
    answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
print()
print(json.dumps(answer))
"""


@dataclass(frozen=True, slots=True)
class ClusterResources:
    """What a cluster has in all."""

    num_cpus: float
    num_gpus: float


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
        hint = "" if error.startswith("ValueError") else _token_hint()
        raise AddressError(f"--address {address}: it cannot be joined: {error[:500]}{hint}")
    resources: dict[str, float] = answer["resources"]
    return ClusterResources(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _token_hint() -> str:
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return ". Its token is asked for: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH must hold the same one"
    return ". If it asks for a token, export RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN"


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

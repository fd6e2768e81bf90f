"""A Ray cluster that is to be joined: whether it answers, and what it has."""

from __future__ import annotations

import json
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
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
print(json.dumps(ray.cluster_resources()))
"""


@dataclass(frozen=True, slots=True)
class ClusterResources:
    """What a cluster has in all."""

    num_cpus: float
    num_gpus: float


class AddressError(RuntimeError):
    """No cluster answers at an address; the text says why."""


def examine_address(address: str) -> list[Finding]:
    """Whether anything listens at ``address``; asks no more and takes seconds at most."""
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:  # "auto", or a name that Ray knows
        return []
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        text = (
            f"--address {address}: nothing answers there ({error}); give the address that `ray start --head` "
            "printed, or leave --address out to start a cluster on this machine"
        )
        return [Finding("missing", "resources", text)]
    return []


def cluster_resources(address: str) -> ClusterResources:
    """What the cluster at ``address`` has. Raises AddressError within seconds if it does not say."""
    if unreachable := examine_address(address):
        raise AddressError(unreachable[0].text)
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
    if asked.returncode != 0:
        *_, reason = ["it did not say why", *filter(None, map(str.strip, asked.stderr.splitlines()))]
        raise AddressError(f"--address {address}: the cluster cannot be joined: {reason}")
    resources: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return ClusterResources(resources.get("CPU", 0.0), resources.get("GPU", 0.0))

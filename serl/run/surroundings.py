"""What a terminal and an environment are like, and what a run makes of it."""

from __future__ import annotations

import io
import os
import socket
import sys

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
_EXCEPTIONS_OF_GRPC = "no_grpc_proxy"  # which it heeds instead, where it is set


def write_any_character() -> None:
    """Standard output shows a character that its encoding lacks as an escape, as standard error does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def reach_local_hosts_directly(address: str | None = None) -> dict[str, str]:
    """Excepts this machine, and the host of ``address``, from the proxies of this process and its children.

    Ray's and Serve's connections would go through an ``http_proxy`` too, which knows nothing of them. Returns
    the variables that were set; none without a proxy.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return {}
    known = [os.environ.get(name, "") for name in (*_EXCEPTIONS, _EXCEPTIONS_OF_GRPC)]
    hosts = [host.strip() for hosts in known for host in hosts.split(",") if host.strip()]
    if "*" in hosts:
        hosts = ["*"]
    else:
        hosts = list(dict.fromkeys([*hosts, *_local_hosts(address)]))
    names = (*_EXCEPTIONS, _EXCEPTIONS_OF_GRPC) if known[-1] else _EXCEPTIONS
    excepted: dict[str, str] = {name: ",".join(hosts) for name in names}
    os.environ.update(excepted)
    return excepted


def _local_hosts(address: str | None) -> list[str]:
    hosts = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which address would be used
            hosts.append(probe.getsockname()[0])
        except OSError:
            pass  # a machine without a network
    if address is not None and ":" in address:
        hosts.append(address.removeprefix("ray://").rpartition(":")[0].strip("[]"))
    return list(dict.fromkeys(hosts))

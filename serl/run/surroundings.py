"""What a terminal and an environment are like, and what a run makes of it."""

from __future__ import annotations

import io
import json
import os
import socket
import sys

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
_EXCEPTIONS_OF_GRPC = "no_grpc_proxy"  # which it heeds instead, where it is set
# In the environment of what `ray job submit` runs, and of who stops it.
_SUBMITTED, _STOP_WAIT = "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_STOP_WAIT_TIME_S"
# What a run may take to end once it has decided to, the update under way before that not counted.
_SECONDS_TO_END = 60


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


def address_to_join(given: str | None) -> str | None:
    """The address of the Ray cluster to join, ``given`` or by RAY_ADDRESS; None for one of the run's own.

    Ray sets that variable for submitted jobs. Where a person has set it for `ray job`, it is that of the
    dashboard, which nobody can join.
    """
    if given is None:
        given = os.environ.get("RAY_ADDRESS", "").strip()
        given = "" if given.startswith(("http://", "https://")) else given
    return None if given in ("", "local") else given


def stop_wait_note() -> str:
    """What to say of a job that `ray job stop` would kill before it could save a checkpoint; else nothing."""
    if _SUBMITTED not in os.environ:
        return ""
    seconds = os.environ.get(_STOP_WAIT, "3")
    if seconds.isdigit() and int(seconds) >= _SECONDS_TO_END:
        return ""
    more = json.dumps({"env_vars": {_STOP_WAIT: "120"}})
    return (
        f"`ray job stop` gives this run {seconds} s to save a checkpoint, and then kills it; for more: "
        f"ray job submit --runtime-env-json '{more}'"
    )


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

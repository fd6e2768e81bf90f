"""Packages that an adapter needs, and that SERL does not install by itself."""

from __future__ import annotations

import importlib
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class MissingPackageError(ValueError):
    """An adapter's package is not installed."""


def require(module: str, extra: str) -> Any:
    """``module``; raises MissingPackageError that names SERL's ``extra`` which installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the environment needs the package {error.name!r}: pip install 'serl[{extra}]'"
        ) from error


@contextmanager
def asking_nobody() -> Iterator[list[str]]:
    """What a package does here reaches no host, whose names are yielded, and no handler of signals.

    Libraries of Hugging Face find what their caches have, and do not try again.
    """
    hosts: list[str] = []

    def refuse(host: Any, *args: Any, **options: Any) -> Any:
        hosts.append(str(host))
        raise socket.gaierror(f"SERL lets nobody ask for {host} here")

    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        replace(socket, "getaddrinfo", refuse)
        replace(signal, "signal", lambda *_: None)
        for module in ("huggingface_hub.constants", "datasets.config"):
            if module in sys.modules:
                replace(sys.modules[module], "HF_HUB_OFFLINE", True)
        yield hosts

"""Waits until a Ray cluster has its nodes: ``python -m tools.cluster.wait_for_nodes ADDRESS NUM_NODES``.

Exit codes: 0 they are there, 1 they did not come in time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import ray

from serl.run.surroundings import write_any_character

_POLL_INTERVAL_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.cluster.wait_for_nodes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("address", help="host and port of the head")
    parser.add_argument("num_nodes", type=int)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds; default: 600")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.timeout
    found = 0
    while time.monotonic() < deadline:
        found = max(found, _num_nodes(options.address))
        if found >= options.num_nodes:
            return 0
        time.sleep(_POLL_INTERVAL_S)
    print(
        f"{found} of {options.num_nodes} nodes joined {options.address}, waited {options.timeout:g} s",
        file=sys.stderr,
    )
    return 1


def _num_nodes(address: str) -> int:
    """0 while nobody answers."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        return 0
    try:
        return sum(node["Alive"] for node in ray.nodes())
    finally:
        ray.shutdown()


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

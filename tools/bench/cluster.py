"""A Ray cluster of the benchmark's own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve


@contextmanager
def local_cluster() -> Iterator[Path]:
    """Starts Ray on this machine and stops it afterwards; yields a folder for logs, which goes with it."""
    with tempfile.TemporaryDirectory(prefix="serl-bench-") as folder:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield Path(folder)
        finally:
            serve.shutdown()
            ray.shutdown()

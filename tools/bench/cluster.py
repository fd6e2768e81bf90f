"""A Ray cluster of the benchmark's own."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve

from serl.run.driver_log import output_to_file


@contextmanager
def local_cluster() -> Iterator[Path]:
    """Starts Ray on this machine and stops it afterwards; yields a folder for logs.

    Standard error goes there too, since what Ray's libraries write would hide the figures. The folder stays
    if the block raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="serl-bench-"))
    try:
        with output_to_file(folder / "driver.log"):
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
                yield folder
            finally:
                if ray.is_initialized():
                    serve.shutdown()
                ray.shutdown()
    except BaseException:
        print(f"what led to this is in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)

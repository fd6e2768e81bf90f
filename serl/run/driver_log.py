"""Where the driver's libraries talk: into a file of the run directory, not over the console."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_file(file: Path) -> None:
    """All loggers of this process, those of Ray too, write to ``file`` and no longer to the console."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "ray"]:
        logger = logging.getLogger(name)
        logger.propagate = True
        for console_handler in list(logger.handlers):
            logger.removeHandler(console_handler)


@contextmanager
def prints_to_file(file: Path) -> Iterator[None]:
    """What anybody prints meanwhile goes to ``file``: Ray has much to say about every worker that dies.

    Whoever holds standard output already, as a `serl.run.console.Console` does, goes on writing to it.
    """
    with file.open("a", encoding="utf-8", errors="replace", buffering=1) as log, redirect_stdout(log):
        yield


@contextmanager
def output_to_file(file: Path) -> Iterator[None]:
    """What Ray prints and what C++ and child processes write to standard error meanwhile goes to ``file``."""
    sys.stderr.flush()
    console = os.dup(2)
    with file.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(log):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(console, 2)
            os.close(console)

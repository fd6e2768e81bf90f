"""`python -m tools.gpu_check.child CHECK FOLDER NUM_GPUS`: one check, in a process of its own."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from tools.gpu_check.checks import CHECKS
from tools.gpu_check.results import Report

RESULTS = "results.jsonl"


def main() -> None:
    """Ends the process: threads of engines and groups would keep it."""
    name, folder, num_gpus = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    (check,) = [check for check in CHECKS if check.function == name]
    try:
        module = importlib.import_module(f"tools.gpu_check.{check.module}")
        getattr(module, check.function)(Report(folder / RESULTS), folder, num_gpus)
    except Exception:
        traceback.print_exc()
        _end(1)
    _end(0)


def _end(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

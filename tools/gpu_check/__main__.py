"""`python -m tools.gpu_check`: every path that needs a GPU, on small models that it makes itself.

Each check is a process with a deadline, so a crash or a hang of one ends no other. A line comes as each part
ends; the table at the end has all of them:

    passed      as on any machine of this kind
    stand-in    passed, but on processors: there is no GPU for it
    not tried   hardware, a package or time is missing; the line says which
    FAILED      the line says why

Nothing is downloaded. Exit codes: 0 nothing failed, 1 something did, 2 bad input.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from serl.run.processes import adopt_orphans, kill_descendants
from serl.run.surroundings import write_any_character
from tools.gpu_check.checks import CHECKS, Check, all_parts
from tools.gpu_check.hardware import this_hardware
from tools.gpu_check.results import Result
from tools.gpu_check.supervise import run_check

PASSED, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. Everything below this process is ended at the end."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    adopt_orphans()
    chosen = [check for check in CHECKS if not options.checks or check.function in options.checks]
    folder = Path(tempfile.mkdtemp(prefix="serl-gpu-check-"))
    hardware = this_hardware()
    print(hardware, flush=True)
    try:
        results = _run(chosen, folder, len(hardware.gpus), time.monotonic() + 60.0 * options.minutes)
    finally:
        kill_descendants(timeout_s=20.0)
    failed = [result for result in results if result.status == "FAILED"]
    counts = ", ".join(
        f"{sum(result.status == status for result in results)} {status}"
        for status in dict.fromkeys(result.status for result in results)
    )
    print(f"\n{hardware}")
    for result in results:
        print(result.line(_WIDTH))
    print(counts)
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    return FAILED if failed else PASSED


_WIDTH = max(map(len, all_parts()))


def _run(chosen: Sequence[Check], folder: Path, num_gpus: int, end: float) -> list[Result]:
    results: list[Result] = []
    for check in chosen:
        left_s = end - time.monotonic()
        if left_s <= 0:
            own = [Result(part, "not tried", "the time of --minutes is over") for part in check.parts]
        else:
            own = run_check(check, folder / check.function, num_gpus, min(check.deadline_s, left_s))
        for result in own:
            print(result.line(_WIDTH), flush=True)
        results += own
    return results


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [check.function for check in CHECKS]
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help=f"some of them: {', '.join(names)} (all)", default=[]
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="that all may take together (15)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.checks if name not in names]:
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(names)}")
    if not options.minutes > 0:
        parser.error("--minutes must be positive")
    return options


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

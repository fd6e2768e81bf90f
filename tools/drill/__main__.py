"""`python -m tools.drill`: short real runs, faults at random moments, and whether anything was lost.

    python -m tools.drill --seeds 20 --out drills           every fault, 20 random moments each
    python -m tools.drill learner_killed chain --seeds 3    some of them
    python -m tools.drill env_runner_stopped+learner_killed*2     one after another in one run
    python -m tools.drill soak --updates 1000               does anything grow? (see soak --help)

Each drill is a run of the quickstart, cut short, at a random moment of which a fault strikes a random process
of its kind. A run that the fault ends is started again by the same command. At the end a ledger is checked:
every update once and in order, groups whole, nothing trained twice, staleness, learning rate, λ, the order of
tasks, evaluations, checkpoints, and that neither a process nor anything in shared memory is left. A wait that
passes its deadline is a hang.

OUT/drills.jsonl has a line for each drill; those that are in it already are not played again. Folders of
drills that passed are removed. Exit codes: 0 all passed, 1 some did not, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from serl.config.errors import ConfigError
from serl.run.json_lines import read_lines
from serl.run.processes import adopt_orphans
from serl.run.surroundings import write_any_character
from tools.arguments import positive
from tools.drill import soak
from tools.drill.drill import DrillResult, play
from tools.drill.faults import CHAIN, FAULTS, faults_of
from tools.drill.table import line, table

PASSED, FAILED, BAD_INPUT = 0, 1, 2
DRILLS = "drills.jsonl"
_RESULT = TypeAdapter(DrillResult)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. Everything below this process is ended at the end."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # So that what is below this process is ended then too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if list(arguments[:1]) == ["soak"]:
        return soak.main(arguments[1:])
    options = _parse(arguments)
    adopt_orphans()
    out: Path = options.out or Path("runs") / time.strftime("drill-%Y%m%d-%H%M%S")
    out = out.absolute()
    results = [result for result in read_lines(out / DRILLS, _RESULT.validate_python)]
    done = {(result.fault, result.seed) for result in results}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.faults:
            if (name, seed) in done:
                continue
            try:
                result = play(name, seed, _folder(out, name, seed), options.overrides, options.deadline)
            except ConfigError as error:
                print(error, file=sys.stderr)
                return BAD_INPUT
            _keep(result, out)
            results.append(result)
            print(line(result), flush=True)
    print(f"\n{table(results)}")
    return PASSED if all(result.passed for result in results) else FAILED


def _folder(out: Path, name: str, seed: int) -> Path:
    """A new one; what an interrupted drill left is removed."""
    folder = out / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _keep(result: DrillResult, out: Path) -> None:
    with (out / DRILLS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")
    if result.passed:
        shutil.rmtree(result.folder)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.drill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join([*FAULTS, CHAIN])
    parser.add_argument(
        "faults",
        nargs="*",
        metavar="FAULT",
        help=f"of: {names}; a+b*2: one after another; none: all; key.path=value: of the experiment",
    )
    parser.add_argument("--seeds", type=positive, default=1, help="drills of every fault (default 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed of the first one (default 0)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/drill-TIME")
    parser.add_argument(
        "--deadline", type=float, default=600.0, help="seconds for every wait; then it hangs (default 600)"
    )
    options = parser.parse_intermixed_args(arguments)
    options.overrides = [text for text in options.faults if "=" in text]
    options.faults = [text for text in options.faults if "=" not in text] or [*FAULTS, CHAIN]
    for name in options.faults:
        try:
            if not faults_of(name, random.Random()):
                parser.error(f"{name!r}: no fault strikes")
        except KeyError as unknown:
            parser.error(f"no fault is called {unknown}; there are {names}")
        except ValueError:
            parser.error(f"{name!r}: a whole number must follow *")
    return options


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

"""`python -m tools.drill soak`: one long run of the quickstart, cut small; does anything grow?

Every few seconds memory, file descriptors and threads of every process of the run are noted, and what it has
in /dev/shm and in Ray's object store. Of each kind of process, growth per 100 updates is estimated over the
samples after the first updates, with a 99 % interval. OUT gets samples.jsonl, soak.svg and the table.
Exit codes: 0 nothing grows, 1 something does or the run failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from serl.config.errors import ConfigError
from serl.run.json_lines import read_lines
from serl.run.processes import adopt_orphans
from tools.drill.processes import shared_memory_files
from tools.drill.run import DrilledRun
from tools.drill.samples import QUANTITIES, Sample, series, take_sample
from tools.drill.slopes import Slope, slopes_after
from tools.drill.soak_figure import MissingMatplotlibError, draw, require_matplotlib

STEADY, GROWS, BAD_INPUT = 0, 1, 2
SAMPLES, FIGURE, TABLE = "samples.jsonl", "soak.svg", "soak.md"
_SAMPLE = TypeAdapter(Sample)
_HEADER = ("quantity", "process", "level", "growth per 100 updates", "99 % interval", "verdict")
# What a drill needs and a soak does not.
_SETTINGS = (
    "name=soak",
    "checkpoint.interval=10",
    "evaluation.interval=50",
    "cluster.heartbeat_timeout_s=60",
    "learner.num_learners=1",
    # Episodes this short hardly ever succeed: soon no row would have an advantage, and learners no work.
    "loss.entropy_coefficient=0.001",
)


def main(arguments: Sequence[str]) -> int:
    """Runs or continues the soak; returns the exit code."""
    options = _parse(arguments)
    out: Path = (options.out or Path("runs") / time.strftime("soak-%Y%m%d-%H%M%S")).absolute()
    try:
        require_matplotlib()
        run = DrilledRun(out, [*_SETTINGS, f"training.num_iterations={options.updates}", *options.overrides])
    except (MissingMatplotlibError, ConfigError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    adopt_orphans()
    code = 0 if options.only_read else _watch(run, out / SAMPLES, options.every)
    samples = read_lines(out / SAMPLES, _SAMPLE.validate_python)
    slopes = {
        quantity: slopes_after(series(samples, quantity), options.warmup, matters_from)
        for quantity, matters_from in QUANTITIES.items()
    }
    text = table(slopes)
    (out / TABLE).write_text(text + "\n", encoding="utf-8")
    draw(samples, options.warmup, out / FIGURE)
    print(f"{text}\n\n{out / FIGURE}")
    if code:
        print(f"the run ended with {code}: {run.console}", file=sys.stderr)
    grows = any(found.verdict == "grows" for own in slopes.values() for found in own.values())
    return GROWS if grows or code else STEADY


def _watch(run: DrilledRun, file: Path, every_s: float) -> int:
    """Runs to the end, and notes samples from the first update on; returns the exit code of the run."""
    shared_before = shared_memory_files()
    run.start()
    try:
        while not run.ended:
            time.sleep(every_s)
            updates = run.updates()
            # A run that is ending has fewer and fewer processes.
            if not updates or run.is_complete():
                continue
            sample = take_sample(run.pid, updates[-1]["iteration"], shared_before)
            with file.open("a", encoding="utf-8") as samples:
                samples.write(json.dumps(asdict(sample)) + "\n")
        return run.wait()
    finally:
        run.end_everything()


def table(slopes: dict[str, dict[str, Slope]]) -> str:
    """Markdown: a row for each quantity and kind of process."""
    rows = [_HEADER, ("---",) * len(_HEADER)]
    for quantity, own in slopes.items():
        for kind, found in own.items():
            interval = f"{found.low:+.3g} to {found.high:+.3g}"
            rows.append(
                (quantity, kind, f"{found.level:.4g}", f"{found.per_100:+.3g}", interval, found.verdict)
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.drill soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--updates", type=int, default=1000, help="of the run (default 1000)")
    parser.add_argument("--warmup", type=int, default=100, help="updates that are left out (default 100)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples (default 5)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/soak-TIME")
    parser.add_argument("--only-read", action="store_true", help="table and figure of the samples in OUT")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of the experiment")
    options = parser.parse_intermixed_args(arguments)
    if options.updates < 1 or options.warmup < 0 or options.every <= 0.0:
        parser.error("--updates and --every must be positive, --warmup 0 or more")
    if options.only_read and options.out is None:
        parser.error("--only-read needs --out")
    return options

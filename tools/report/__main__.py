"""Writes what a sweep shows: ``python -m tools.report SWEEP [--out FOLDER] [--notes FILE.md]``.

A Markdown page and SVG figures, made of the runs that are finished; the others are listed. Needs matplotlib
and scipy (``pip install .[dev]``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serl.config.errors import ConfigError
from serl.run.surroundings import write_any_character
from tools.arguments import output_folder
from tools.report.page import write_report
from tools.report.reading import UnreadableSweepError, read_sweep


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a sweep or notes that cannot be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="the --out of tools.sweep")
    parser.add_argument(
        "--out", type=output_folder, help="folder for page and figures (default SWEEP/report)"
    )
    parser.add_argument("--title", help="the page's heading (default: the sweep's folder)")
    parser.add_argument("--notes", type=Path, help="Markdown that says what you make of it")
    parser.add_argument("--baseline", metavar="ARM", help="compare every other arm with this one alone")
    options = parser.parse_args(arguments)
    try:
        sweep = read_sweep(options.sweep)
        if options.baseline is not None and options.baseline not in sweep.arms:
            arms = ", ".join(sweep.arms)
            raise UnreadableSweepError(f"--baseline {options.baseline} is no arm of the sweep: {arms}")
        notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
    except (OSError, UnicodeDecodeError, ConfigError, UnreadableSweepError) as error:
        print(error, file=sys.stderr)
        return 2
    title = options.title or options.sweep.resolve().name
    print(write_report(sweep, options.out or options.sweep / "report", title, notes, options.baseline))
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

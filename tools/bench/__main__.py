"""`python -m tools.bench BENCHMARK`: what SERL's parts cost, as ratios measured in one session.

Both sides of a ratio run in the same session, in turns, so that whatever else the machine does slows both.
A line shows a median and, in brackets, the least and the greatest value; the last line repeats the ratios.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tools.bench.arguments import BenchmarkInputError, parse_arguments
from tools.bench.figures import Figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one benchmark; returns the exit code: 0 done, 2 bad input."""
    options = parse_arguments(__doc__ or "", arguments)
    figures = Figures(options.benchmark)
    try:
        # Each imports what it measures; the environments' needs neither torch nor Ray.
        importlib.import_module(f"tools.bench.{options.benchmark}").run(options, figures)
    except BenchmarkInputError as error:
        print(error, file=sys.stderr)
        return 2
    figures.summarise()
    if options.json is not None:
        figures.write_json(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

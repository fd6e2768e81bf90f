"""Writes the Grafana dashboard from the panels in the code.

python -m tools.monitoring           # writes serl.dashboard.json, if it is not current
python -m tools.monitoring --check   # says so and exits with 1, writing nothing

Needs grafana-foundation-sdk, of the extra `dev`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from serl.run.surroundings import write_any_character
from tools.monitoring.dashboard import FILE, dashboard_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.monitoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the file is not current")
    options = parser.parse_args(arguments)
    current = dashboard_json()
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == current:
        return 0
    if options.check:
        print(f"{FILE.name} is not current")
        return 1
    FILE.write_text(current, encoding="utf-8")
    print(f"{FILE} written")
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

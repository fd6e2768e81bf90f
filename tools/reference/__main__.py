"""Writes the reference pages of config keys and metrics from the code.

python -m tools.reference           # writes the pages that are not current
python -m tools.reference --check   # names them and exits with 1, writing nothing
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from serl.run.surroundings import write_any_character
from tools.reference.pages import REPOSITORY, outdated_pages, write_pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is not current")
    check = parser.parse_args(arguments).check
    for path in outdated_pages() if check else write_pages():
        print(f"{path.relative_to(REPOSITORY)} {'is not current' if check else 'written'}")
    return 1 if check and outdated_pages() else 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

"""Merges the adapters of a checkpoint into their base: a Hugging Face folder that anything loads.

    python -m tools.merge_lora runs/my_run/checkpoints/iteration_000012 merged/

The weights have the base's own dtype. The base is the one that the run began with, or ``--base``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serl.models.merge import base_of, holds_adapters, write_merged
from serl.models.resolve import ModelPathError, resolve_model
from serl.run.surroundings import write_any_character


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the folder; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.merge_lora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of a run with model.lora, or its policy/")
    parser.add_argument("folder", type=Path, help="where the policy is written; must not be there yet")
    parser.add_argument("--base", help="in place of the model that the adapters name, as in model.path")
    options = parser.parse_args(arguments)
    inside = options.checkpoint / "policy"
    adapters = inside if holds_adapters(inside) else options.checkpoint
    try:
        if options.folder.exists():
            raise ModelPathError(f"{options.folder} is there already")
        base = resolve_model(options.base) if options.base else base_of(adapters)
        write_merged(base, adapters, options.folder)
    except (ModelPathError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.folder}: {adapters} merged into {base}")
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

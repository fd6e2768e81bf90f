"""Makes up a WebShop catalogue: the one that ships with SERL, or a folder in WebShop's own file layout.

    python -m tools.make_webshop_catalogue --out catalogue.xz --seed 0
    python -m tools.make_webshop_catalogue --out FOLDER --products-per-kind 20

A path that ends in .xz gets one file, any other becomes a folder for WEBSHOP_DATA. The same arguments give
the same bytes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.webshop.data_files import EMBEDDED_FORMAT
from envs.webshop.generator.generate import DIFFICULTIES, GeneratedCatalogue, generate_catalogue
from envs.webshop.nouns import NOUNS_FILE, TitleNouns, write_nouns
from serl.run.surroundings import write_any_character


def write_embedded(path: Path, catalogue: GeneratedCatalogue) -> None:
    """One xz-compressed JSON file; the same catalogue gives the same bytes."""
    content = {"format": EMBEDDED_FORMAT, **asdict(catalogue)}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def write_folder(folder: Path, catalogue: GeneratedCatalogue) -> None:
    """The files of WebShop's small catalogue, and the nouns of the titles."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "items_shuffle_1000.json", catalogue.items)
    _write_json(folder / "items_ins_v2_1000.json", catalogue.items_ins)
    _write_json(folder / "items_human_ins.json", catalogue.items_human_ins)
    nouns = TitleNouns({asin: tuple(tokens) for asin, tokens in catalogue.nouns.items()}, "the generator")
    write_nouns(folder / NOUNS_FILE, nouns)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a file ending in .xz, or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--products-per-kind", type=int, default=len(DIFFICULTIES), help="default %(default)s"
    )
    options = parser.parse_args(arguments)
    if options.products_per_kind < 1:
        parser.error("--products-per-kind: ask for at least one product of each kind")
    catalogue = generate_catalogue(options.seed, options.products_per_kind)
    (write_embedded if options.out.suffix == ".xz" else write_folder)(options.out, catalogue)
    print(f"{options.out}: {len(catalogue.items)} products")
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

"""Makes WebShop's data ready, once: nouns of the titles, and for the full catalogue files that all share.

    python -m tools.prepare_webshop --data WEBSHOP_DATA
    python -m tools.prepare_webshop --data WEBSHOP_DATA --catalogue full

small: writes title_nouns.json beside WebShop's files. full: writes a folder with products, nouns and search
index, which env runners map into memory. Nouns come from spaCy and its model if both are installed, as in the
original; else small is left without, and full gets a title's words less stop words. Which one it was is said
and kept with the data, with the goals that no purchase of their own product can meet in full.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.webshop.catalogue import LoadReport, ProductReader
from envs.webshop.data_files import (
    DATA_VARIABLE,
    DataFiles,
    data_folder,
    find_files,
    load_catalogue,
    read_mapping,
    stream_records,
)
from envs.webshop.nouns import FALLBACK, NOUNS_FILE, TitleNouns, read_nouns, write_nouns
from envs.webshop.packed import PACK_FOLDER, PackedCatalogue, write_pack
from envs.webshop.reachability import reachable_on_own_product
from envs.webshop.shop import Shop
from serl.run.surroundings import write_any_character

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "en_core_web_sm"
UNREACHABLE_FILE = "unreachable_goals.txt"

_NOUN_TAGS = frozenset({"NOUN", "PROPN"})
_SHOWN_PROBLEMS = 10

Tagger = Callable[[Iterable[tuple[str, str]]], Iterator[tuple[tuple[str, ...], str]]]
"""``(title, asin)`` pairs to ``(nouns, asin)`` pairs."""


def spacy_tagger(model: str) -> tuple[Tagger, str] | None:
    """A tagger and what it is called; None, with the reason logged, if spaCy or the model is not there."""
    try:
        import spacy  # type: ignore[import-not-found]

        language = spacy.load(model, exclude=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        logger.warning("no spaCy with model %s: %s", model, error)
        return None

    def tag(titles: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, ...], str]]:
        for document, asin in language.pipe(titles, as_tuples=True):
            yield tuple(token.text.lower() for token in document if token.pos_ in _NOUN_TAGS), asin

    return tag, f"spaCy {spacy.__version__} with {model} {language.meta['version']}"


def title_nouns(files: DataFiles, model: str) -> TitleNouns:
    """The nouns of all titles; without a tagger those of the file there is, or none."""
    tagger = spacy_tagger(model)
    if tagger is None:
        return read_nouns(files.nouns) if files.nouns else TitleNouns({}, FALLBACK)
    tag, source = tagger
    reader = ProductReader(read_mapping(files.annotations), {})
    titles = ((product.title, product.asin) for product in reader.read(stream_records(files.products)))
    return TitleNouns({asin: nouns for nouns, asin in tag(titles)}, source)


def prepare_small(files: DataFiles, out: Path, model: str) -> int:
    """Writes the nouns, if there is a tagger; the exit status."""
    nouns = title_nouns(files, model)
    if nouns.source != FALLBACK:
        write_nouns(out / NOUNS_FILE, nouns)
        files = DataFiles(files.products, files.annotations, files.human, out / NOUNS_FILE)
    catalogue = load_catalogue(files)
    shop = Shop.open(catalogue)
    report(shop, catalogue.report, out, (False, True) if files.human else (False,))
    return 0


def prepare_full(files: DataFiles, out: Path, model: str) -> int:
    """Writes the folder of shared files; the exit status."""
    out = out / PACK_FOLDER
    load_report = write_pack(files, title_nouns(files, model), out)
    catalogue = PackedCatalogue(out)
    report(Shop.open(catalogue, catalogue.open_index()), load_report, out, (True,) if files.human else ())
    return 0


def report(shop: Shop, load_report: LoadReport, out: Path, kinds_of_goals: Iterable[bool]) -> None:
    """Says what the data hold and lists the goals that cannot be met in full."""
    catalogue: Any = shop.catalogue
    for problem in load_report.malformed[:_SHOWN_PROBLEMS]:
        logger.warning("skipped %s", problem)
    logger.info(
        "%d products, %d malformed and skipped, %d left out as in the original; title nouns from %s",
        *(len(catalogue), len(load_report.malformed), load_report.num_left_out, catalogue.noun_source),
    )
    unreachable: list[str] = []
    for human in kinds_of_goals:
        goals = shop.goals(human).goals
        missed = [goal.goal_id for goal in goals if not reachable_on_own_product(goal, shop)]
        kind = "goals written by people" if human else "synthetic goals"
        logger.info("%d %s, %d of them cannot be met in full", len(goals), kind, len(missed))
        unreachable += missed
    (out / UNREACHABLE_FILE).write_text("".join(f"{goal_id}\n" for goal_id in unreachable), encoding="utf-8")
    logger.info("written to %s", out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 when the data cannot be read or the result not written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=DATA_VARIABLE, help="folder of WebShop's files (default: $WEBSHOP_DATA)"
    )
    parser.add_argument("--catalogue", choices=("small", "full"), default="small")
    parser.add_argument("--out", type=Path, help="where to write (default: the data folder)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="spaCy model (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        folder = data_folder(options.data)
        files = find_files(folder, options.catalogue)
        prepare = prepare_full if options.catalogue == "full" else prepare_small
        out = options.out or folder
        out.mkdir(parents=True, exist_ok=True)
        return prepare(files, out, options.model)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 2


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())

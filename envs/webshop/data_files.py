"""WebShop's own data files: which they are, where they come from, and how they are read."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any

from envs.webshop.catalogue import InMemoryCatalogue, ProductReader
from envs.webshop.nouns import FALLBACK, NOUNS_FILE, TitleNouns, read_nouns
from serl.config.paths import expanded_path

DATA_VARIABLE = "WEBSHOP_DATA"
EMBEDDED_FILE = "catalogue.xz"
EMBEDDED_FORMAT = "serl-webshop-catalogue/1"

_CHUNK_CHARACTERS = 1 << 24
_LONGEST_RECORD = 1 << 26
_GET_THEM = (
    "WebShop's setup.sh (github.com/princeton-nlp/WebShop) downloads the files; then `export "
    "WEBSHOP_DATA=FOLDER`, or set env.args.data to the folder, or env.args.catalogue to 'embedded' for the "
    "products that ship with SERL"
)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of one catalogue. ``human`` is None where there are no people's instructions."""

    products: Path
    annotations: Path
    human: Path | None
    nouns: Path | None


def data_folder(data: str) -> Path:
    """``WEBSHOP_DATA`` (the variable's folder) or a path, with ``~`` and ``$VARIABLES`` expanded.

    Raises FileNotFoundError, saying what to do, if there is no such folder; UnknownPathError.
    """
    if data == DATA_VARIABLE:
        named = os.environ.get(DATA_VARIABLE)
        if not named:
            raise FileNotFoundError(
                f"env.args.data is {DATA_VARIABLE!r} but that variable is not set: {_GET_THEM}"
            )
        data = named
    folder = expanded_path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: {_GET_THEM}")
    return folder


def find_files(folder: Path, catalogue: str) -> DataFiles:
    """The files of catalogue ``small`` or ``full`` by WebShop's names.

    A small catalogue may go by another name: then the folder must hold a single file that fits
    ``items_shuffle_*.json``, ``items_ins*.json`` and ``items_human_ins*.json``.
    Raises FileNotFoundError for a missing file, ValueError where several would do.
    """
    small = catalogue == "small"
    products = _find(
        folder, "items_shuffle_1000.json" if small else "items_shuffle.json", "items_shuffle_*.json", small
    )
    annotations = _find(
        folder, "items_ins_v2_1000.json" if small else "items_ins_v2.json", "items_ins*.json", small
    )
    if products is None or annotations is None:
        missing = "products" if products is None else "attributes and instructions of the products"
        raise FileNotFoundError(
            f"no file with the {missing} of catalogue {catalogue!r} in {folder}: {_GET_THEM}"
        )
    human = _find(folder, "items_human_ins.json", "items_human_ins*.json", small)
    nouns = folder / NOUNS_FILE
    return DataFiles(products, annotations, human, nouns if nouns.is_file() else None)


def _find(folder: Path, name: str, pattern: str, other_names: bool) -> Path | None:
    if (folder / name).is_file():
        return folder / name
    candidates = sorted(folder.glob(pattern)) if other_names else []
    if len(candidates) > 1:
        found = ", ".join(path.name for path in candidates)
        raise ValueError(f"{folder} has no {name}, and several files in its place: {found}")
    return candidates[0] if candidates else None


def load_catalogue(paths: DataFiles) -> InMemoryCatalogue:
    """Reads a catalogue into memory. Raises ValueError, naming the file, for one of another shape."""
    reader = ProductReader(read_mapping(paths.annotations), read_mapping(paths.human) if paths.human else {})
    nouns = read_nouns(paths.nouns) if paths.nouns else TitleNouns({}, FALLBACK)
    products = list(reader.read(stream_records(paths.products)))
    if not products:
        raise ValueError(
            f"{paths.products} holds no usable product; the first problem: {reader.malformed[:1]}"
        )
    return InMemoryCatalogue(products, nouns, reader.report)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises ValueError, naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds {type(content).__name__}, expected an object with one entry per product"
        )
    return content


def stream_records(path: Path) -> Iterator[Any]:
    """The elements of a JSON array, one at a time, in bounded memory. Raises ValueError, naming the file."""
    with path.open(encoding="utf-8-sig") as text:
        try:
            yield from _elements(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON array of products: {error}") from error


def _elements(text: IO[str]) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    buffer = text.read(_CHUNK_CHARACTERS).lstrip()
    if not buffer.startswith("["):
        raise ValueError("it does not begin with [")
    position = 1
    while True:
        position = _skip(buffer, position)
        if buffer.startswith("]", position):
            return
        try:
            element, end = decoder.raw_decode(buffer, position)
            complete = end < len(buffer)
        except json.JSONDecodeError:
            element, end, complete = None, position, False
        if complete:
            yield element
            position = end
            continue
        more = text.read(_CHUNK_CHARACTERS) if len(buffer) - position < _LONGEST_RECORD else ""
        if not more:
            raise ValueError(f"it breaks off or is damaged at {buffer[position : position + 60]!r}")
        buffer, position = buffer[position:] + more, 0


def _skip(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in " \t\r\n,":
        position += 1
    return position


@cache
def embedded_catalogue() -> InMemoryCatalogue:
    """The products that ship with SERL, read once a process. Raises FileNotFoundError, ValueError."""
    with as_file(files("envs.webshop") / "data" / EMBEDDED_FILE) as path:
        content = json.loads(lzma.decompress(path.read_bytes()))
    if content.get("format") != EMBEDDED_FORMAT:
        raise ValueError(f"{EMBEDDED_FILE}: format {content.get('format')!r}, expected {EMBEDDED_FORMAT!r}")
    reader = ProductReader(content["items_ins"], content["items_human_ins"])
    nouns = TitleNouns({asin: tuple(tokens) for asin, tokens in content["nouns"].items()}, "the generator")
    return InMemoryCatalogue(list(reader.read(content["items"])), nouns, reader.report)

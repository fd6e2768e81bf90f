"""A catalogue too large to keep as objects: a folder of files that every process of a node maps into memory.

``header.json``, ``products.jsonl`` (one product and its title nouns a line, read when asked for), arrays of
offsets, asins and prices, and the search index. `tools.prepare_webshop` writes it once.

Measured on two cores by ``python -m tools.bench env --products 200000``, descriptions as long as real ones:
187 MB of index, mapped and shared, opened in 0.13 s; a search takes 0.6 ms on average and 1 ms at most; next
to nothing is a process's own. From 20,000 to 200,000 products the index grows 8.8 times, a search 3 times.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from envs.webshop.catalogue import LoadReport, ProductReader
from envs.webshop.data_files import DataFiles, read_mapping, stream_records
from envs.webshop.index_build import build_index
from envs.webshop.nouns import TitleNouns
from envs.webshop.products import Instruction, Product
from envs.webshop.reward import TitledProduct
from envs.webshop.search import SearchIndex, open_index, save_index

PACK_FORMAT = "serl-webshop-pack/1"
PACK_FOLDER = "serl_webshop_full"

_HEADER, _PRODUCTS, _INDEX = "header.json", "products.jsonl", "index"
_CACHED_PRODUCTS = 256


class PackError(ValueError):
    """A folder that is not a prepared catalogue, with the path and the reason."""


def find_pack(folder: Path) -> Path:
    """The prepared catalogue beside WebShop's files in ``folder``, or ``folder`` if it is one itself."""
    return folder if (folder / _HEADER).is_file() else folder / PACK_FOLDER


class PackedCatalogue:
    """The catalogue in ``folder``. Raises PackError, or FileNotFoundError saying what to run."""

    def __init__(self, folder: Path):
        if not (folder / _HEADER).is_file():
            raise FileNotFoundError(
                f"no prepared catalogue in {folder}: run `python -m tools.prepare_webshop --catalogue full "
                "--data FOLDER` once, where FOLDER holds WebShop's own files"
            )
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
            if header["format"] != PACK_FORMAT:
                raise PackError(f"{folder}: format {header['format']!r}, expected {PACK_FORMAT!r}")
            self.fingerprint: str = header["fingerprint"]
            self.noun_source: str = header["noun_source"]
            self.report = LoadReport(tuple(header["malformed"]), header["num_left_out"])
            self._lines = np.memmap(folder / _PRODUCTS, np.uint8, mode="r")
            arrays = ("line_ends", "asins", "asin_order", "prices", "instructed", "human_instructed")
            self._line_ends, self._asins, self._asin_order, self._prices, *instructed = (
                np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays
            )
        except (KeyError, ValueError, TypeError, OSError, EOFError) as error:
            raise PackError(f"{folder} is not a prepared catalogue: {error!r}") from error
        if not len(self._line_ends) == len(self._asins) == len(self._prices) or self._line_ends[-1] != len(
            self._lines
        ):
            raise PackError(f"{folder} is not a prepared catalogue: its files do not fit each other")
        self._instructed = {False: instructed[0], True: instructed[1]}
        self._folder = folder
        self._titled = lru_cache(maxsize=_CACHED_PRODUCTS)(self._read)

    def __len__(self) -> int:
        return len(self._line_ends)

    def titled(self, number: int) -> TitledProduct:
        return self._titled(number)

    def number_of(self, asin: str) -> int:
        key = asin.encode()
        place = int(np.searchsorted(self._asins, key))
        if place == len(self._asins) or self._asins[place] != key:
            raise KeyError(asin)
        return int(self._asin_order[place])

    def pricings(self) -> Iterable[tuple[float, ...]]:
        return ((low,) if high != high else (low, high) for low, high in self._prices.tolist())

    def with_instruction(self, human: bool) -> Iterator[tuple[int, Product]]:
        return ((int(number), self._read(int(number)).product) for number in self._instructed[human])

    def open_index(self) -> SearchIndex:
        """The search index of the catalogue, mapped into memory. Raises PackError."""
        try:
            return open_index(self._folder / _INDEX)
        except (ValueError, OSError, EOFError) as error:
            raise PackError(f"{self._folder} has no readable search index: {error!r}") from error

    def _read(self, number: int) -> TitledProduct:
        start = int(self._line_ends[number - 1]) if number else 0
        return _parse_line(self._lines[start : int(self._line_ends[number])].tobytes())


def write_pack(files: DataFiles, nouns: TitleNouns, folder: Path) -> LoadReport:
    """Reads WebShop's files one product at a time and writes the catalogue in ``folder``; says what it left
    out.

    Raises ValueError, naming the file, for one that is not what it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _HEADER).unlink(missing_ok=True)
    reader = ProductReader(read_mapping(files.annotations), read_mapping(files.human) if files.human else {})
    writer = _PackWriter(folder)
    products = reader.read(stream_records(files.products))
    # The writer notes each asin while the index reads its text: as many of one as of the other at the end.
    index = build_index(writer.write(products, nouns), writer.asins)
    save_index(index, folder / _INDEX)
    writer.save_arrays()
    report = reader.report
    header = {
        "format": PACK_FORMAT,
        "fingerprint": writer.digest.hexdigest(),
        "noun_source": nouns.source,
        "malformed": report.malformed,
        "num_left_out": report.num_left_out,
    }
    (folder / _HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
    return report


class _PackWriter:
    """Writes product lines and gathers what the arrays hold."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._line_ends = array("q")
        self._prices = array("d")
        self._instructed = array("i")
        self._human_instructed = array("i")
        self.asins: list[str] = []
        self.digest = hashlib.sha256()

    def write(self, products: Iterable[Product], nouns: TitleNouns) -> Iterator[str]:
        """Writes every product; yields its search text."""
        end = 0
        with (self._folder / _PRODUCTS).open("wb") as lines:
            for number, product in enumerate(products):
                line = _line(TitledProduct(product, nouns.of(product.asin, product.title)))
                lines.write(line)
                self.digest.update(line)
                end += len(line)
                self._line_ends.append(end)
                self._prices.extend((*product.pricing, float("nan"))[:2])
                if product.instruction is not None:
                    self._instructed.append(number)
                if product.human_instructions:
                    self._human_instructed.append(number)
                self.asins.append(product.asin)
                yield product.search_text

    def save_arrays(self) -> None:
        asins = np.array([asin.encode() for asin in self.asins])
        order = np.argsort(asins, kind="stable").astype(np.int32)
        arrays = {
            "line_ends": np.array(self._line_ends, np.int64),
            "asins": asins[order],
            "asin_order": order,
            "prices": np.array(self._prices, np.float64).reshape(-1, 2),
            "instructed": np.array(self._instructed, np.int32),
            "human_instructed": np.array(self._human_instructed, np.int32),
        }
        for name, values in arrays.items():
            np.save(self._folder / f"{name}.npy", values)


def _line(titled: TitledProduct) -> bytes:
    return json.dumps([asdict(titled.product), titled.nouns], separators=(",", ":")).encode() + b"\n"


def _parse_line(line: bytes) -> TitledProduct:
    fields, nouns = json.loads(line)
    instruction = fields["instruction"]
    return TitledProduct(
        Product(
            **{
                **fields,
                "bullets": tuple(fields["bullets"]),
                "pricing": tuple(fields["pricing"]),
                "options": {name: tuple(values) for name, values in fields["options"].items()},
                "attributes": tuple(fields["attributes"]),
                "instruction": None if instruction is None else _instruction(instruction),
                "human_instructions": tuple(_instruction(entry) for entry in fields["human_instructions"]),
            }
        ),
        tuple(nouns),
    )


def _instruction(fields: dict) -> Instruction:
    return Instruction(fields["text"], tuple(fields["attributes"]), tuple(fields["options"]))

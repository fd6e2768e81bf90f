"""Reads what a run directory recorded; what cannot be read is named and left out, never an error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serl.config.errors import ConfigError
from serl.config.yaml_files import read_mapping
from serl.run.json_lines import row_of
from serl.run.records import TrajectoryRecord
from serl.run.run_dir import CONFIG


@dataclass(slots=True)
class Problems:
    """Sentences about lines that were left out; the first ``num_named`` of them in full."""

    num_named: int = 20
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self.named) < self.num_named:
            self.named.append(sentence)


def read_trajectories(file: Path, problems: Problems) -> Iterator[TrajectoryRecord]:
    """The records of ``file``, one at a time; raises OSError if it cannot be opened."""
    for where, line in _lines(file):
        try:
            yield TrajectoryRecord.model_validate_json(line)
        except ValidationError as error:
            problems.add(f"{where}: {_first_error(error)}")


def read_rows(file: Path, problems: Problems) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that have an "iteration"; none if there is no such file."""
    rows: list[dict[str, Any]] = []
    if not file.is_file():
        return rows
    for where, line in _lines(file):
        try:
            rows.append(row_of(json.loads(line, parse_constant=_refuse_constant, parse_float=_finite)))
        except (ValueError, RecursionError) as error:
            problems.add(f"{where}: {error}")
    return rows


def number_in(row: dict[str, Any], name: str) -> float | None:
    """The value ``name`` of a row if it is a number."""
    value = row.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_config(run_dir: Path, problems: Problems) -> dict[str, Any]:
    """The run's resolved configuration as plain values, whatever version wrote it; {} without one."""
    try:
        return read_mapping(run_dir / CONFIG)
    except ConfigError as error:
        problems.add(str(error))
        return {}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no finite number")
    return value


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                yield f"{file.name} line {number}", line.rstrip(b"\r\n")


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {first['msg']}{more}" if place else f"{first['msg']}{more}"

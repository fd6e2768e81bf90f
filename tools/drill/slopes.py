"""Whether a quantity of a long run grows, and whether that matters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.99
# Neighbouring samples resemble each other; means of parts of the run do much less.
_NUM_PARTS = 30
_FEWEST_PARTS = 6


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per 100 updates, Theil–Sen's median of slopes, with its 99 % interval; NaN of too few samples.

    ``matters_from``: less growth per 100 updates than this is none that anyone would notice.
    """

    level: float
    per_100: float
    low: float
    high: float
    matters_from: float

    @property
    def verdict(self) -> str:
        """``grows`` if it does so beyond chance and by enough to matter."""
        if math.isnan(self.per_100):
            return "too short"
        if self.low <= 0.0:
            return "none"
        return "grows" if self.per_100 >= self.matters_from else "little"


def slope(updates: Sequence[float], values: Sequence[float], matters_from: float) -> Slope:
    """Of ``values`` over ``updates``, which rise, on means of equal parts of the range of updates."""
    places, means = _parts(np.asarray(updates, float), np.asarray(values, float))
    if len(places) < _FEWEST_PARTS:
        level = float(np.mean(values)) if len(values) else math.nan
        return Slope(level, math.nan, math.nan, math.nan, matters_from)
    found: Any = stats.theilslopes(means, places, alpha=CONFIDENCE)
    return Slope(
        level=float(np.mean(means)),
        per_100=100.0 * float(found.slope),
        low=100.0 * float(found.low_slope),
        high=100.0 * float(found.high_slope),
        matters_from=matters_from,
    )


def slopes_after(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], warmup: int, matters_from: float
) -> dict[str, Slope]:
    """The slope of each of ``series``, (updates, values) by name, over what came after ``warmup`` updates."""
    found = {}
    for name, (updates, values) in series.items():
        kept = [(at, value) for at, value in zip(updates, values, strict=True) if at >= warmup]
        found[name] = slope([at for at, _ in kept], [value for _, value in kept], matters_from)
    return found


def _parts(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(places) == 0 or places[-1] == places[0]:
        return places[:1], values[:1]
    edges = np.linspace(places[0], places[-1], _NUM_PARTS + 1)
    part = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, _NUM_PARTS - 1)
    filled = np.unique(part)
    return (
        np.array([places[part == each].mean() for each in filled]),
        np.array([values[part == each].mean() for each in filled]),
    )

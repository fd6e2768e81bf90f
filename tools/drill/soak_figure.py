"""The figure of a soak: every quantity over the updates, a line for each kind of process."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tools.drill.samples import QUANTITIES, Sample, series


class MissingMatplotlibError(RuntimeError):
    """Figures need a package that is not there."""


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingMatplotlibError("the figure needs matplotlib: pip install 'serl[dev]'")


def draw(samples: Sequence[Sample], warmup: int, picture: Path) -> None:
    """Writes an SVG; what came before ``warmup`` updates is shaded."""
    import matplotlib

    matplotlib.use("Agg")
    # Letters as text and a fixed salt: the same samples give the same small file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "serl"})
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(2, 3, figsize=(13.0, 6.5), sharex=True, layout="constrained")
    lines = {}
    kinds = sorted({kind for quantity in QUANTITIES for kind in series(samples, quantity)})
    colours = {kind: f"C{number}" for number, kind in enumerate(kinds)}
    for axes, quantity in zip(all_axes.flat, QUANTITIES, strict=True):
        for kind, (updates, values) in series(samples, quantity).items():
            lines[kind] = axes.plot(updates, values, color=colours[kind], linewidth=1.0)[0]
        axes.axvspan(0, warmup, color="0.9", zorder=0)
        axes.set(title=quantity, ylim=(0, None))
        axes.grid(alpha=0.3)
    for axes in all_axes[-1]:
        axes.set(xlabel="learner updates")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)

"""The figure: AUC by evidence beside the policy's own, and success with evidence in the prompt."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serl.hindsight.credit import Auc
from tools.credit.report import Report

_ALL, _POSITIVE, _OWN = "#9db4c8", "#2f6690", "#c1440e"


class NoMatplotlibError(RuntimeError):
    """A figure was asked for, and matplotlib is not installed."""


def require_matplotlib() -> None:
    """Raises NoMatplotlibError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NoMatplotlibError("--figure needs matplotlib: pip install matplotlib, or leave --figure out")


def draw(report: Report, picture: Path) -> None:
    """Writes ``picture`` in the format that its name ends with."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "serl"})
    from matplotlib import pyplot

    rows = max(len(report.sources), 4)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11.0, 1.6 + 0.28 * rows), width_ratios=(3, 2), layout="constrained"
    )
    _draw_credit(left, report)
    _draw_hinted(right, report)
    figure.suptitle(report.title, fontsize=10)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)
    pyplot.close(figure)


def _draw_credit(axes: Any, report: Report) -> None:
    names = list(report.sources)
    columns = (
        ("all", _ALL, 0.14, [report.sources[name].idle for name in names]),
        ("A > 0", _POSITIVE, -0.14, [report.sources[name].idle_positive for name in names]),
    )
    for label, color, offset, aucs in columns:
        places = [index + offset for index in range(len(names))]
        axes.errorbar(
            [auc.value for auc in aucs],
            places,
            xerr=_bars(aucs),
            fmt="o",
            color=color,
            capsize=2,
            label=label,
        )
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.axvline(report.student.idle.value, color=_OWN, linewidth=1.0, label="the policy's own log-prob")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="AUC of the log-ratio: progress against idle actions", xlim=(0.0, 1.0))
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="lower left")


def _bars(aucs: Sequence[Auc]) -> list[list[float]]:
    return [[auc.value - auc.low for auc in aucs], [auc.high - auc.value for auc in aucs]]


def _draw_hinted(axes: Any, report: Report) -> None:
    names = list(report.hinted)
    for label, color, offset in (("without", _ALL, -0.2), ("with evidence", _POSITIVE, 0.2)):
        solved = [
            report.hinted[name].hinted if label == "with evidence" else report.hinted[name].plain
            for name in names
        ]
        rates = [sum(own) / len(own) for own in solved]
        axes.barh([index + offset for index in range(len(names))], rates, 0.4, color=color, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="success", xlim=(0.0, 1.0))
    axes.invert_yaxis()
    if names:
        axes.legend(fontsize=7)

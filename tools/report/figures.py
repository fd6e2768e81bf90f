"""The report's figures. Each function writes one SVG, unless there is nothing to draw; returns whether."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.report.reading import Progress, Run, Sweep, progress
from tools.report.statistics import Estimate, mean_interval

_LONG_NUMBER_IN_TAG = re.compile(r"\d+\.\d{3,}(?=[^<>]*>)")
_COLORS = ("#2f6690", "#c1440e", "#3a7d44", "#7d4f9e", "#b8860b", "#5f6b73", "#d1668f", "#1b998b", "#8d5524")
_AXES: tuple[tuple[str, Callable[[Progress], float]], ...] = (
    ("environment steps", lambda at: at.env_steps),
    ("learner updates", lambda at: at.iteration),
    ("minutes of training", lambda at: 60.0 * at.hours),
)
_TRAINING = (
    ("rollout/success", "success of training episodes"),
    ("rollout/invalid_action_rate", "invalid actions"),
    ("learner/entropy", "entropy (nats a token)"),
    ("learner/clip_fraction", "clipped tokens"),
)
_HINDSIGHT = (
    ("learner/teacher_positive_weight_mean", "mean weight, A > 0"),
    ("learner/teacher_negative_weight_mean", "mean weight, A < 0"),
    ("learner/teacher_log_ratio_mean", "mean log-ratio Δ (nats)"),
    ("learner/teacher_clipped_fraction", "clipped weights"),
)


def draw_success(sweep: Sweep, picture: Path) -> bool:
    """Held-out success against environment steps, updates and minutes; bands are 95 % over seeds."""
    pyplot = _pyplot()
    figure, all_axes = pyplot.subplots(1, 3, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    drawn = False
    for color, arm in zip(_colors(sweep), sweep.arms, strict=True):
        points = _evaluation_points(sweep.of(arm))
        drawn = drawn or bool(points)
        success = [mean_interval([at.success for at in point]) for point in points]
        for axes, (_, measure) in zip(all_axes, _AXES, strict=True):
            places = [mean_interval([measure(at) for at in point]).mean for point in points]
            label = f"{arm} ({len(sweep.of(arm))})"
            _line_with_band(axes, places, success, color, label, _is_bound(sweep.of(arm)))
    for axes, (label, _) in zip(all_axes, _AXES, strict=True):
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    all_axes[0].set(ylabel="held-out success")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return _saved(figure, picture, drawn)


def draw_training(sweep: Sweep, picture: Path) -> bool:
    """What an RL engineer looks at first: training success, invalid actions, entropy, clipping."""
    return _draw_metrics(sweep, _TRAINING, picture)


def draw_hindsight(sweep: Sweep, picture: Path) -> bool:
    """Teacher weights and log-ratios by update, of the arms that have a teacher."""
    return _draw_metrics(sweep, _HINDSIGHT, picture)


def draw_credit(sweep: Sweep, picture: Path) -> bool:
    """The AUC of the teacher's credit by update, where runs logged it, beside held-out success."""
    if not any(run.values("credit/auc_idle_positive") for run in sweep.runs):
        return False
    pyplot = _pyplot()
    figure, (credit_axes, success_axes) = pyplot.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    labels: dict[str, Any] = {}
    for color, arm in zip(_colors(sweep), sweep.arms, strict=True):
        runs = sweep.of(arm)
        points = _evaluation_points(runs)
        success = [mean_interval([at.success for at in point]) for point in points]
        places = [mean_interval([at.iteration for at in point]).mean for point in points]
        labels[arm] = _line_with_band(success_axes, places, success, color, arm, _is_bound(runs))
        _metric_line(credit_axes, runs, "credit/auc_idle_positive", color, arm)
    credit_axes.axhline(0.5, color="#999999", linewidth=0.8)
    credit_axes.set(xlabel="learner updates", ylabel="AUC of the teacher's credit, A > 0")
    success_axes.set(xlabel="learner updates", ylabel="held-out success")
    for axes in (credit_axes, success_axes):
        axes.grid(alpha=0.3)
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=3, fontsize=8)
    return _saved(figure, picture, True)


def draw_time(names: Sequence[str], seconds: dict[str, list[float]], picture: Path) -> bool:
    """One bar an arm: seconds of an iteration, part by part. ``seconds[arm][i]`` belongs to ``names[i]``."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.5, 0.8 + 0.4 * len(seconds)), layout="constrained")
    lefts = [0.0] * len(seconds)
    for index, name in enumerate(names):
        widths = [parts[index] for parts in seconds.values()]
        axes.barh(list(seconds), widths, left=lefts, color=_COLORS[index % len(_COLORS)], label=name)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set(xlabel="seconds an iteration, as the driver sees them")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return _saved(figure, picture, bool(seconds))


def draw_staleness(sweep: Sweep, picture: Path) -> bool:
    """Final success and the train–inference mismatch by ``training.max_staleness``, if arms differ in it."""
    by_bound: dict[int, list[Run]] = {}
    for run in sweep.runs:
        if run.final_evaluation is not None:
            by_bound.setdefault(run.experiment.training.max_staleness, []).append(run)
    if len(by_bound) < 2:
        return False
    pyplot = _pyplot()
    figure, (success_axes, mismatch_axes) = pyplot.subplots(1, 2, figsize=(7.5, 3.0), layout="constrained")
    bounds = sorted(by_bound)
    for axes, label, value_of in (
        (success_axes, "final held-out success", lambda run: run.final_evaluation.overall.rate),
        (
            mismatch_axes,
            "train–inference mismatch (nats)",
            lambda run: run.mean("learner/train_inference_mismatch"),
        ),
    ):
        values = [[v for run in by_bound[bound] if (v := value_of(run)) is not None] for bound in bounds]
        estimates = [mean_interval(found or [math.nan]) for found in values]
        axes.errorbar(
            bounds,
            [estimate.mean for estimate in estimates],
            yerr=[0.0 if math.isnan(e.half_width) else e.half_width for e in estimates],
            fmt="o-",
            capsize=4,
            color=_COLORS[0],
        )
        axes.set(xlabel="training.max_staleness", ylabel=label, xticks=bounds)
        axes.grid(alpha=0.3)
    return _saved(figure, picture, True)


def _evaluation_points(runs: Sequence[Run]) -> list[list[Progress]]:
    """The evaluations that all ``runs`` played, each as one entry a run."""
    tracks = [{at.iteration: at for at in progress(run)} for run in runs]
    common = set.intersection(*(set(track) for track in tracks)) if tracks else set()
    return [[track[iteration] for track in tracks] for iteration in sorted(common)]


def _draw_metrics(sweep: Sweep, metrics: Sequence[tuple[str, str]], picture: Path) -> bool:
    pyplot = _pyplot()
    figure, all_axes = pyplot.subplots(1, len(metrics), figsize=(13.0, 3.2), layout="constrained")
    labels: dict[str, Any] = {}
    for color, arm in zip(_colors(sweep), sweep.arms, strict=True):
        for axes, (name, title) in zip(all_axes, metrics, strict=True):
            axes.set(title=title, xlabel="learner updates")
            axes.title.set_fontsize(9)
            axes.grid(alpha=0.3)
            line = _metric_line(axes, sweep.of(arm), name, color, arm)
            if line is not None:
                labels[arm] = line
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=3, fontsize=8)
    return _saved(figure, picture, bool(labels))


def _metric_line(axes: Any, runs: Sequence[Run], name: str, color: str, label: str) -> Any:
    """The metric's mean over ``runs`` by update, where all have it; None where none do."""
    tracks = [dict(run.values(name)) for run in runs]
    common = sorted(set.intersection(*(set(track) for track in tracks))) if tracks else []
    if not common:
        return None
    estimates = [mean_interval([track[at] for track in tracks]) for at in common]
    return _line_with_band(axes, common, estimates, color, label, _is_bound(runs))


def _is_bound(runs: Sequence[Run]) -> bool:
    """Whether they had perfect credit."""
    return runs[0].experiment.hindsight.control == "progress"


def _line_with_band(
    axes: Any,
    places: Sequence[float],
    estimates: Sequence[Estimate],
    color: str,
    label: str,
    is_dashed: bool = False,
) -> Any:
    means = [estimate.mean for estimate in estimates]
    halves = [0.0 if math.isnan(estimate.half_width) else estimate.half_width for estimate in estimates]
    marker, style = "." if len(places) < 12 else None, "--" if is_dashed else "-"
    (line,) = axes.plot(places, means, color=color, label=label, marker=marker, linestyle=style)
    low = [mean - half for mean, half in zip(means, halves, strict=True)]
    high = [mean + half for mean, half in zip(means, halves, strict=True)]
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    return line


def _colors(sweep: Sweep) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(len(sweep.arms))]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    # Letters as text and a fixed salt: the same sweep gives the same small files.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "serl"})
    from matplotlib import pyplot

    return pyplot


def _saved(figure: Any, picture: Path, drawn: bool) -> bool:
    if drawn:
        figure.savefig(picture, metadata={"Date": None})
        text = picture.read_text(encoding="utf-8")
        picture.write_text(_LONG_NUMBER_IN_TAG.sub(_rounded, text), encoding="utf-8")
    _pyplot().close(figure)
    return drawn


def _rounded(number: re.Match[str]) -> str:
    """A coordinate in points: a hundredth is more than anyone sees, the rest an eighth of a file."""
    return f"{float(number[0]):.2f}"

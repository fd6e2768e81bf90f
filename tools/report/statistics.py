"""Intervals over seeds, and paired tests of final evaluations between arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from tools.report.reading import Run, Sweep, progress

NUM_PERMUTATIONS = 20_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``count`` values; ``half_width`` of its 95 % interval, NaN for a single value."""

    mean: float
    half_width: float
    count: int


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95 % interval (n − 1 degrees of freedom); raises ValueError without values."""
    if not values:
        raise ValueError("a mean needs at least one value")
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return Estimate(mean, math.nan, 1)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = float(stats.t.ppf(0.975, count - 1))
    return Estimate(mean, quantile * math.sqrt(variance / count), count)


def weighted_mean_interval(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Σ w·v / Σ w with the normal 95 % interval, for weights that were drawn together with the values.

    Raises ValueError unless the weights' sum is positive.
    """
    total = sum(weights)
    if total <= 0.0:
        raise ValueError("a weighted mean needs a positive sum of weights")
    pairs = list(zip(values, weights, strict=True))
    mean = sum(weight * value for value, weight in pairs) / total
    spread = math.sqrt(sum((weight * (value - mean)) ** 2 for value, weight in pairs))
    return Estimate(mean, float(stats.norm.ppf(0.975)) * spread / total, len(pairs))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Final evaluations of two arms on the seeds and games that both have.

    ``difference`` is success of ``left`` − ``right``, its interval that of the paired differences over seeds.
    ``left_only`` and ``right_only`` count (seed, game) pairs that one solved and the other did not.
    ``p_value`` is of the per-game test, ``adjusted`` Holm's over all comparisons of the table.
    """

    left: str
    right: str
    difference: Estimate
    num_games: int
    left_only: int
    right_only: int
    p_value: float
    adjusted: float = math.nan


def compare_all(sweep: Sweep, baseline: str | None = None) -> list[Comparison]:
    """Pairs of arms that share a seed with recorded outcomes, p-values adjusted over them.

    With ``baseline`` each other arm with that one alone, so that what is not asked costs nothing.
    """
    return _of_pairs(sweep, compare, baseline)


def compare(left_runs: Sequence[Run], right_runs: Sequence[Run]) -> Comparison | None:
    """The paired comparison of two arms; None without a seed of both whose evaluations tell their outcomes.

    A game without an episode in one of the two counts as not solved there, as in the evaluation's own rate.
    """
    right_of = {run.seed: run for run in right_runs}
    gains: dict[str, list[int]] = {}
    by_seed: list[float] = []
    left_only = right_only = 0
    for run in left_runs:
        other = right_of.get(run.seed)
        left, right = (
            found.final_evaluation.outcomes if found and found.final_evaluation else {}
            for found in (run, other)
        )
        if not left or not right:
            continue
        games = sorted({*left, *right})
        gained = [int(left.get(game, False)) - int(right.get(game, False)) for game in games]
        for game, gain in zip(games, gained, strict=True):
            gains.setdefault(game, []).append(gain)
        by_seed.append(sum(gained) / len(games))
        left_only += gained.count(1)
        right_only += gained.count(-1)
    if not by_seed:
        return None
    per_game = [sum(values) for values in gains.values()]
    return Comparison(
        left_runs[0].arm,
        right_runs[0].arm,
        mean_interval(by_seed),
        len(gains),
        left_only,
        right_only,
        sign_flip_p_value(per_game),
    )


@dataclass(frozen=True, slots=True)
class MeanComparison:
    """The mean success of evaluations after updates, ``left`` − ``right``, over the seeds of both.

    ``p_value`` is of the paired t-test, ``adjusted`` Holm's over all comparisons of the table. ``time_ratio``
    is the hours of training iterations of ``left`` over those of ``right``.
    """

    left: str
    right: str
    difference: Estimate
    p_value: float
    time_ratio: float
    adjusted: float = math.nan


AnyComparison = TypeVar("AnyComparison", Comparison, MeanComparison)


def compare_means(sweep: Sweep, baseline: str | None = None) -> list[MeanComparison]:
    """Those pairs, as in `compare_all`, that share two seeds with evaluations after updates."""
    return _of_pairs(sweep, _compare_means, baseline)


def _compare_means(left_runs: Sequence[Run], right_runs: Sequence[Run]) -> MeanComparison | None:
    right_of = {run.seed: run for run in right_runs}
    differences: list[float] = []
    hours = [0.0, 0.0]
    for left in left_runs:
        if left.seed not in right_of:
            continue
        tracks = [{at.iteration: at for at in progress(run)} for run in (left, right_of[left.seed])]
        common = [at for at in tracks[0] if at > 0 and at in tracks[1]]
        if common:
            first, second = (sum(track[at].success for at in common) / len(common) for track in tracks)
            differences.append(first - second)
            hours = [total + track[common[-1]].hours for total, track in zip(hours, tracks, strict=True)]
    if len(differences) < 2:
        return None
    test: Any = stats.ttest_1samp(differences, 0.0)
    p_value = float(test.pvalue) if any(differences) else 1.0
    time_ratio = hours[0] / hours[1] if hours[1] else math.nan
    return MeanComparison(
        left_runs[0].arm, right_runs[0].arm, mean_interval(differences), p_value, time_ratio
    )


def _of_pairs(
    sweep: Sweep,
    compared: Callable[[Sequence[Run], Sequence[Run]], AnyComparison | None],
    baseline: str | None,
) -> list[AnyComparison]:
    """What ``compared`` makes of each pair of arms, where it can, with Holm's adjustment over all of them."""
    if baseline is None:
        pairs = list(combinations(sweep.arms, 2))
    else:
        pairs = [(arm, baseline) for arm in sweep.arms if arm != baseline]
    comparisons = [compared(sweep.of(left), sweep.of(right)) for left, right in pairs]
    found = [comparison for comparison in comparisons if comparison is not None]
    adjusted = holm([comparison.p_value for comparison in found])
    return [replace(comparison, adjusted=p) for comparison, p in zip(found, adjusted, strict=True)]


def sign_flip_p_value(differences: Sequence[int]) -> float:
    """Two-sided p of a paired randomisation test: under the null each difference may have either sign.

    Exact by enumeration for up to 14 differences that are not 0, else from `NUM_PERMUTATIONS` draws of a
    fixed seed, the observed one counted in (so p is never 0).
    """
    values = np.array([value for value in differences if value != 0])
    observed = abs(int(values.sum()))
    if len(values) <= 14:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        return float((np.abs(signs @ values) >= observed).mean()) if len(values) else 1.0
    signs = np.random.default_rng(0).choice([-1, 1], size=(NUM_PERMUTATIONS, len(values)))
    return float(((np.abs(signs @ values) >= observed).sum() + 1) / (NUM_PERMUTATIONS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

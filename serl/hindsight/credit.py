"""Credit: does a score of actions, such as the teacher's log-ratio, tell progress from the rest?

The measure is the area under the ROC curve: how often an action that made progress has the higher score of
the two, when one is drawn from those that did and one from those that did not (Mann and Whitney, 1947).
0.5 is a coin; below it the score misleads. Weights made of a score without credit cannot help, whatever λ.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serl.rollout.progress import ActionKind

_NUM_RESAMPLES = 1000
_SEED = 0

IDLE: tuple[ActionKind, ...] = ("idle",)
REST: tuple[ActionKind, ...] = ("idle", "inadmissible")


@dataclass(frozen=True, slots=True)
class Auc:
    """``value`` in [0, 1] and its 95 % interval; NaN where there is nothing to compare.

    ``num_progress`` actions made progress, ``num_others`` are those they were compared with.
    """

    value: float
    low: float
    high: float
    num_progress: int
    num_others: int


@dataclass(frozen=True, slots=True)
class ScoredActions:
    """A actions: ``scores``, ``kinds``, ``advantages`` and ``groups``, all [A].

    ``groups``, 0 … G − 1, says which actions depend on one another: intervals resample whole groups.
    """

    scores: NDArray[np.float64]
    kinds: NDArray[np.str_]
    advantages: NDArray[np.float64]
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, actions: Sequence[tuple[float, ActionKind, float, int]]) -> Self:
        """Of ``(score, kind, advantage, group)`` of each action."""
        return cls(
            np.array([score for score, _, _, _ in actions], dtype=np.float64),
            np.array([kind for _, kind, _, _ in actions], dtype=np.str_),
            np.array([advantage for _, _, advantage, _ in actions], dtype=np.float64),
            np.array([group for _, _, _, group in actions], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def auc(self, against: Collection[ActionKind], sign: int = 0) -> Auc:
        """Progress against actions of the kinds ``against``.

        ``sign`` 1 or −1: only actions with an advantage of that sign; 0: all.
        """
        chosen = np.ones(len(self), dtype=np.bool_) if sign == 0 else np.sign(self.advantages) == sign
        progress = chosen & (self.kinds == "progress")
        others = chosen & np.isin(self.kinds, list(against))
        wins = group_wins(
            self.scores[progress], self.groups[progress], self.scores[others], self.groups[others]
        )
        num_progress = np.bincount(self.groups[progress], minlength=len(wins)).astype(np.float64)
        num_others = np.bincount(self.groups[others], minlength=len(wins)).astype(np.float64)
        low, high = _interval(wins, num_progress, num_others)
        pairs = int(progress.sum()) * int(others.sum())
        value = float(wins.sum()) / pairs if pairs else math.nan
        return Auc(value, low, high, int(progress.sum()), int(others.sum()))


def group_wins(
    progress: NDArray[np.float64],
    progress_groups: NDArray[np.int64],
    others: NDArray[np.float64],
    other_groups: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[G, G]: of the pairs of a score of group g's ``progress`` and one of group h's ``others``, how many the
    former wins; a tie counts one half. All arguments are [actions]; G is the greatest group + 1."""
    num_groups = int(max(progress_groups.max(initial=-1), other_groups.max(initial=-1))) + 1
    wins = np.zeros((num_groups, num_groups), dtype=np.float64)
    for group in range(num_groups):
        own = np.sort(others[other_groups == group])
        lower = np.searchsorted(own, progress, side="left")
        not_higher = np.searchsorted(own, progress, side="right")
        np.add.at(wins[:, group], progress_groups, (lower + not_higher) / 2.0)
    return wins


def _interval(
    wins: NDArray[np.float64], num_progress: NDArray[np.float64], num_others: NDArray[np.float64]
) -> tuple[float, float]:
    """The bootstrap's percentile interval (Efron, 1979): groups drawn with replacement, of a fixed seed.

    Draws without a pair to compare are left out.
    """
    num_groups = len(wins)
    if num_groups == 0:
        return math.nan, math.nan
    draws = np.random.default_rng(_SEED).multinomial(
        num_groups, [1.0 / num_groups] * num_groups, _NUM_RESAMPLES
    )
    won = ((draws @ wins) * draws).sum(axis=1)
    pairs = (draws @ num_progress) * (draws @ num_others)
    if not pairs.any():
        return math.nan, math.nan
    values = np.sort(won[pairs > 0] / pairs[pairs > 0])
    tail = round(0.025 * (len(values) - 1))
    return float(values[tail]), float(values[-1 - tail])

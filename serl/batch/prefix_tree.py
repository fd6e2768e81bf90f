"""Sequences of tokens as paths of one tree, in which beginnings that are equal are there once.

The order of a walk along it is all that has to be known of it. What a sequence shares with the one before it
in that order is the most that it shares with any before it: the rest of it is new to the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from serl.batch.rows import Array


def tree_order(sequences: Sequence[Array]) -> list[int]:
    """Indices of ``sequences``, all of one dtype, along their tree, the longer of two that begin alike first.

    So one that another begins with adds nothing to the tree.
    """
    keys = [sequence.tobytes() for sequence in sequences]
    return sorted(range(len(keys)), key=keys.__getitem__, reverse=True)


def num_shared(first: Array, second: Array) -> int:
    """How many equal tokens both begin with."""
    shorter = min(len(first), len(second))
    differs = first[:shorter] != second[:shorter]
    where = int(differs.argmax()) if shorter else 0
    return where if shorter and differs[where] else shorter


class PrefixTree:
    """The tree of R ``sequences``; of some of them, everything is known without looking at a token again."""

    def __init__(self, sequences: Sequence[Array]) -> None:
        self.lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        order = tree_order(sequences)
        self._order = np.array(order, dtype=np.int64)
        self._ranks = np.argsort(self._order)
        pairs = pairwise(sequences[index] for index in order)
        self._shared = np.array([0, *(num_shared(before, own) for before, own in pairs)])

    def along(self, indices: Sequence[int] | Array) -> tuple[Array, Array]:
        """``indices`` along the tree, and how much each shares with the one before it, the first nothing."""
        ranks = np.sort(self._ranks[np.asarray(indices, dtype=np.int64)])
        shared = np.zeros(len(ranks), dtype=np.int64)
        if len(ranks) > 1:
            shared[1:] = np.minimum.reduceat(self._shared[: ranks[-1] + 1], ranks[:-1] + 1)
        return self._order[ranks], shared

    def num_new(self, indices: Sequence[int] | Array) -> Array:
        """How many tokens each sequence at ``indices`` adds to their tree, [R] (int64); others none."""
        added = np.zeros(len(self.lengths), dtype=np.int64)
        along, shared = self.along(indices)
        added[along] = self.lengths[along] - shared
        return added

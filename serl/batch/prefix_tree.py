"""Sequences of tokens as paths of one tree, in which beginnings that are equal are there once.

The order of `tree_order` is all that has to be known of it. What a sequence shares with the one before it in
that order is the most that it shares with any before it: the rest of it is new to the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    return int(differs.argmax()) if differs.any() else shorter


def num_new_tokens(sequences: Sequence[Array]) -> Array:
    """How many tokens each of the R ``sequences`` adds to their tree, [R] (int64)."""
    added = np.zeros(len(sequences), dtype=np.int64)
    before: Array | None = None
    for index in tree_order(sequences):
        own = sequences[index]
        added[index] = len(own) - (0 if before is None else num_shared(before, own))
        before = own
    return added

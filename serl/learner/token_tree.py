"""Sequences as one tree of tokens, and which of them a token attends to.

What several sequences begin with is in the tree once, so it is computed once; autograd sums the gradients
where paths part. A token's position is its depth, and it attends to itself and to its ancestors, which are
the tokens before it in every sequence that it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serl.batch.prefix_tree import num_shared, tree_order
from serl.batch.rows import Array


@dataclass(frozen=True, slots=True)
class TokenTree:
    """N tokens of R sequences, in B branches one after another.

    ``ids`` and ``positions`` [N]. ``paths[i]``: where the tokens of sequence i are. ``starts`` [B + 1]: where
    each branch begins; ``branches[b]``: the places of all that its tokens attend to, up to its own last one.
    """

    ids: Array
    positions: Array
    paths: list[Array]
    starts: Array
    branches: list[Array]

    @classmethod
    def of(cls, sequences: Sequence[Array]) -> TokenTree:
        """The tree of ``sequences``, of one dtype and none of them empty."""
        paths: list[Array] = [np.empty(0, np.int64)] * len(sequences)
        ids: list[Array] = []
        branches: list[Array] = []
        starts = [0]
        path, before = np.empty(0, np.int64), sequences[0][:0]
        for index in tree_order(sequences):
            own = sequences[index]
            shared = num_shared(before, own)
            end = starts[-1] + len(own) - shared
            path = np.concatenate((path[:shared], np.arange(starts[-1], end)))
            if end > starts[-1]:
                ids.append(own[shared:])
                branches.append(path)
                starts.append(end)
            paths[index], before = path, own
        positions = [
            np.arange(len(path) - len(new), len(path)) for path, new in zip(branches, ids, strict=True)
        ]
        return cls(np.concatenate(ids), np.concatenate(positions), paths, np.array(starts), branches)

    @property
    def own_places(self) -> list[Array]:
        """The places of each branch's own tokens."""
        return np.split(np.arange(len(self.ids)), self.starts[1:-1])

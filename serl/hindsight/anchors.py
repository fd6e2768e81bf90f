"""Anchor clusters: the steps of one group that acted on the same observation (GiGPO, arXiv 2505.10978)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray


def anchor_clusters(anchors: Sequence[str], similarity: float | None) -> list[int]:
    """The cluster of each anchor, numbered in the order in which clusters open.

    ``similarity`` None: equal texts. Else an anchor joins the first cluster whose first member it resembles
    with `difflib` ratio ≥ ``similarity``, so the order of ``anchors`` matters.
    """
    clusters: dict[str, int] = {}
    if similarity is None:
        return [clusters.setdefault(anchor, len(clusters)) for anchor in anchors]
    representatives = _Representatives(sorted(set(anchors)), similarity)
    for anchor in anchors:
        if anchor not in clusters:
            clusters[anchor] = representatives.first_similar_or_new(anchor)
    return [clusters[anchor] for anchor in anchors]


def anchor_size_metrics(sizes: Sequence[int], prefix: str) -> dict[str, float]:
    """How many steps share an anchor, from the size of each step's own cluster.

    ``<prefix>_anchor_size_mean`` (over anchors) and ``…_max``, ``<prefix>_anchor_alone_share``: the share of
    steps that no other step has the anchor of. Empty without any step.
    """
    if not sizes:
        return {}
    num_anchors = sum(1.0 / size for size in sizes)
    return {
        f"{prefix}_anchor_size_mean": len(sizes) / num_anchors,
        f"{prefix}_anchor_size_max": float(max(sizes)),
        f"{prefix}_anchor_alone_share": sum(size == 1 for size in sizes) / len(sizes),
    }


class _Representatives:
    """First members of clusters. Nearly all pairs are decided without the costly ratio, by two bounds on

        ratio(a, b) = 2 · matches / (len(a) + len(b)).

    ``matches`` is at most Σ_char min(count_a, count_b), difflib's ``quick_ratio``, here against all
    representatives at once, and at most the length of the longest common subsequence.
    """

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self._similarity = similarity
        self._row = {text: row for row, text in enumerate(texts)}
        self._char_counts = _char_counts(texts)
        self._lengths = [len(text) for text in texts]
        self._rows: list[int] = []
        self._matchers: list[SequenceMatcher[str]] = []
        self._positions: list[dict[str, int]] = []

    def first_similar_or_new(self, text: str) -> int:
        for cluster in self._within_bound(text):
            length = self._lengths[self._rows[cluster]]
            longest = common_subsequence(text, self._positions[cluster], length)
            if 2.0 * longest / (len(text) + length) < self._similarity:
                continue
            matcher = self._matchers[cluster]
            matcher.set_seq1(text)
            if matcher.ratio() >= self._similarity:
                return cluster
        self._rows.append(self._row[text])
        # difflib caches what it learns of the second sequence, so the representative is the second.
        self._matchers.append(SequenceMatcher(None, "", text))
        self._positions.append(char_positions(text))
        return len(self._rows) - 1

    def _within_bound(self, text: str) -> list[int]:
        """The clusters whose first member may resemble ``text``."""
        row = self._row[text]
        common = np.minimum(self._char_counts[self._rows], self._char_counts[row]).sum(axis=1)
        lengths = np.array([self._lengths[other] + self._lengths[row] for other in self._rows])
        bound = np.where(lengths > 0, 2.0 * common / np.maximum(lengths, 1), 1.0)
        return np.flatnonzero(bound >= self._similarity).tolist()


def char_positions(text: str) -> dict[str, int]:
    """For each character the integer whose bit i is set where ``text[i]`` is that character."""
    positions: dict[str, int] = {}
    for index, char in enumerate(text):
        positions[char] = positions.get(char, 0) | 1 << index
    return positions


def common_subsequence(text: str, positions: dict[str, int], length: int) -> int:
    """The length of the longest common subsequence of ``text`` and the text of ``positions`` and ``length``.

    Bit-parallel: one row of the dynamic programme is one integer (H. Hyyrö, "Bit-parallel LCS-length
    computation revisited", 2004).
    """
    everywhere = (1 << length) - 1
    row = everywhere
    for char in text:
        matches = row & positions.get(char, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return length - row.bit_count()


def _char_counts(texts: Sequence[str]) -> NDArray[np.int32]:
    """[texts, distinct characters] how often each character occurs in each text."""
    alphabet = {char: column for column, char in enumerate(sorted(set("".join(texts))))}
    counts = np.zeros((len(texts), len(alphabet)), dtype=np.int32)
    for row, text in enumerate(texts):
        np.add.at(counts[row], [alphabet[char] for char in text], 1)
    return counts

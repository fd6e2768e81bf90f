"""BM25 search with the numbers of Lucene 8: same scores, same order, ties by product id.

k1 = 0.9, b = 0.4, idf = ln(1 + (N - df + 0.5) / (df + 0.5)), document lengths stored in one byte, all in
float32 as Lucene computes it. The arrays of an index may be memory-mapped: then all processes of a node share
them and loading costs nothing.

Source of the formula: Robertson and Zaragoza, "The probabilistic relevance framework: BM25 and beyond", 2009.
Postings are skipped as in Turtle and Flood, "Query evaluation: strategies and optimizations", 1995
(MaxScore): exact, only faster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.webshop.analyzer import terms

MAX_HITS = 50

_PRUNED_FROM = 20_000
_CACHED_TERMS = 1 << 16
_ROUNDING = 1e-6
_LOOKUP_COST = 16
_PROBES = 128


@dataclass(frozen=True, slots=True)
class Hit:
    """A document, by its number, and its score."""

    number: int
    score: float


class _SortedTerms(Sequence[bytes]):
    """Terms in ascending order of their bytes, laid out one after the other."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]):
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):
        start = int(self._ends[index - 1]) if index else 0
        return self._text[start : int(self._ends[index])].tobytes()


@dataclass(slots=True)
class SearchIndex:
    """An inverted index over documents 0 to N - 1. T terms, P postings.

    ``term_text`` [bytes], ``term_ends`` [T]: the terms in ascending order. ``posting_ends`` [T]: where each
    term's postings end. ``documents`` [P]: document numbers, ascending within a term. ``saturation`` [P]:
    1 + frequency / length norm. ``peak_saturation`` [T]: the largest of each term. ``tie_rank`` [N]: which of
    two documents with equal scores comes first.
    """

    term_text: NDArray[np.uint8]
    term_ends: NDArray[np.int64]
    posting_ends: NDArray[np.int64]
    documents: NDArray[np.int32]
    saturation: NDArray[np.float32]
    peak_saturation: NDArray[np.float32]
    tie_rank: NDArray[np.int32]
    _term_numbers: dict[str, int | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_documents(self) -> int:
        return len(self.tie_rank)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays, in memory or mapped."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    def search(self, query: str, max_hits: int = MAX_HITS) -> list[Hit]:
        """The best documents, best first; at most ``max_hits``, and only those that share a term."""
        postings = [p for term, count in Counter(terms(query)).items() if (p := self._postings(term, count))]
        if not postings:
            return []
        postings.sort(key=lambda posting: -posting.peak)
        scores = np.zeros(self.num_documents)
        if self.num_documents < _PRUNED_FROM:
            for posting in postings:
                posting.add_all_to(scores)
            candidates = np.flatnonzero(scores)
        else:
            candidates = _accumulate(postings, scores, max_hits)
        return self._best(candidates, scores[candidates].astype(np.float32), max_hits)

    def _best(self, candidates: NDArray[np.integer], scores: NDArray[np.float32], max_hits: int) -> list[Hit]:
        if len(candidates) > max_hits:
            threshold = np.partition(scores, -max_hits)[-max_hits]
            kept = scores >= threshold
            candidates, scores = candidates[kept], scores[kept]
        order = np.lexsort((self.tie_rank[candidates], -scores))[:max_hits]
        return [Hit(int(candidates[i]), float(scores[i])) for i in order]

    def _postings(self, term: str, count: int) -> _Postings | None:
        number = self._term_number(term)
        if number is None:
            return None
        start = int(self.posting_ends[number - 1]) if number else 0
        end = int(self.posting_ends[number])
        document_frequency = end - start
        odds = (self.num_documents - document_frequency + 0.5) / (document_frequency + 0.5)
        weight = np.float32(count) * np.float32(math.log(1 + odds))
        peak = float(weight - weight / self.peak_saturation[number])
        return _Postings(self.documents[start:end], self.saturation[start:end], weight, peak)

    def _term_number(self, term: str) -> int | None:
        if term not in self._term_numbers:
            if len(self._term_numbers) >= _CACHED_TERMS:
                self._term_numbers.clear()
            self._term_numbers[term] = self._find(term.encode())
        return self._term_numbers[term]

    def _find(self, term: bytes) -> int | None:
        sorted_terms = _SortedTerms(self.term_text, self.term_ends)
        low, high = 0, len(sorted_terms)
        while low < high:
            middle = (low + high) // 2
            if sorted_terms[middle] < term:
                low = middle + 1
            else:
                high = middle
        return low if low < len(sorted_terms) and sorted_terms[low] == term else None


ARRAYS = tuple(entry.name for entry in fields(SearchIndex) if entry.init)


@dataclass(slots=True)
class _Postings:
    """Where a query term occurs. ``peak`` is the most it adds to a score."""

    documents: NDArray[np.int32]
    saturation: NDArray[np.float32]
    weight: np.float32
    peak: float

    def add_all_to(self, scores: NDArray[np.float64]) -> None:
        """Adds to the scores of all documents of the term: w - w / (1 + f / norm), as Lucene puts it."""
        contributions = self.weight - self.weight / self.saturation
        # `add.at` is three times as fast as `+=` on picked elements, but only with these two types.
        np.add.at(scores, self.documents.astype(np.intp), contributions.astype(np.float64))

    def of(self, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """What the term adds to the score of each of ``candidates``."""
        places = np.searchsorted(self.documents, candidates)
        places[places == len(self.documents)] = 0
        found = self.documents[places] == candidates
        return np.where(found, self.weight - self.weight / self.saturation[places], np.float32(0))

    def add_to(self, scores: NDArray[np.float64], candidates: NDArray[np.int32]) -> None:
        """Adds to the scores of ``candidates``, and perhaps of others."""
        if len(candidates) * _LOOKUP_COST > len(self.documents):
            self.add_all_to(scores)
        else:
            scores[candidates] += self.of(candidates)


def _accumulate(postings: list[_Postings], scores: NDArray[np.float64], max_hits: int) -> NDArray[np.int32]:
    """Adds up ``scores`` for every document that can be among the best; returns those documents.

    Once the terms left cannot lift an unseen document above the threshold, only documents already seen count.
    """
    rest = [sum(posting.peak for posting in postings[i:]) for i in range(len(postings) + 1)]
    pool = np.empty(0, np.int32)
    threshold = 0.0
    number = 0
    while number < len(postings) and threshold <= rest[number] * (1 + _ROUNDING):
        left = postings[number:]
        if len(pool) >= max_hits and len(left[0].documents) > _LOOKUP_COST * _PROBES * len(left):
            threshold = max(threshold, _probe(pool, scores, left, max_hits))
            if threshold > rest[number] * (1 + _ROUNDING):
                break
        left[0].add_all_to(scores)
        if max_hits <= len(left[0].documents) < (len(pool) or math.inf):
            pool = left[0].documents
        number += 1
    bound = threshold * (1 - _ROUNDING) - rest[number]
    candidates = np.flatnonzero(scores >= bound if bound > 0 else scores).astype(np.int32)
    for index in range(number, len(postings)):
        postings[index].add_to(scores, candidates)
        reached = scores[candidates]
        threshold = max(threshold, _kth_best(reached, max_hits))
        candidates = candidates[reached + rest[index + 1] >= threshold * (1 - _ROUNDING)]
    return candidates


def _probe(
    pool: NDArray[np.int32], scores: NDArray[np.float64], left: list[_Postings], max_hits: int
) -> float:
    """A score that ``max_hits`` documents reach: the full scores of the most promising ones of ``pool``."""
    so_far = scores[pool]
    if len(pool) > _PROBES:
        promising = np.argpartition(so_far, -_PROBES)[-_PROBES:]
        pool, so_far = pool[promising], so_far[promising]
    return _kth_best(so_far + sum(posting.of(pool) for posting in left), max_hits)


def _kth_best(scores: NDArray[np.float64], k: int) -> float:
    return float(np.partition(scores, -k)[-k]) if len(scores) >= k else 0.0


def save_index(index: SearchIndex, folder: Path) -> None:
    """Writes one ``.npy`` file per array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(index, name))


def open_index(folder: Path) -> SearchIndex:
    """Maps the arrays of a saved index into memory. Raises OSError, or ValueError or EOFError if damaged."""
    return SearchIndex(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS})

"""Builds a search index, documents first and lengths later, in memory of about ten bytes a posting."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.webshop.analyzer import term_of, words
from envs.webshop.search import SearchIndex

K1 = np.float32(0.9)
B = np.float32(0.4)

_POSTINGS_PER_BLOCK = 1 << 21
_EXACT_LENGTHS = 24
_MAX_FREQUENCY = 2**16 - 1


def encode_length(length: int) -> int:
    """A document length in one byte: exact below 40, then four significant bits (Lucene's SmallFloat)."""
    if length < _EXACT_LENGTHS:
        return length
    rest = length - _EXACT_LENGTHS
    shift = rest.bit_length() - 4
    return _EXACT_LENGTHS + (rest if shift < 0 else (shift + 1) << 3 | rest >> shift & 7)


def decode_length(code: int) -> int:
    """The length that `encode_length` keeps of all lengths with this code."""
    if code < _EXACT_LENGTHS:
        return code
    bits, shift = (code - _EXACT_LENGTHS) & 7, ((code - _EXACT_LENGTHS) >> 3) - 1
    return _EXACT_LENGTHS + (bits if shift < 0 else (bits | 8) << shift)


@dataclass(slots=True)
class _Block:
    """Postings of some documents in a row, by document."""

    terms: array = field(default_factory=lambda: array("i"))
    documents: array = field(default_factory=lambda: array("i"))
    frequencies: array = field(default_factory=lambda: array("H"))


@dataclass(slots=True)
class _Postings:
    """Everything the documents say, before lengths are known."""

    term_numbers: dict[str, int] = field(default_factory=dict)
    lengths: array = field(default_factory=lambda: array("i"))
    blocks: list[_Block] = field(default_factory=lambda: [_Block()])


def build_index(texts: Iterable[str], ids: Sequence[str]) -> SearchIndex:
    """The index over ``texts``; equal scores are ordered by ``ids``, one for each text.

    Raises ValueError if there are no texts, or not as many as ids.
    """
    postings = _read(texts)
    if len(postings.lengths) != len(ids) or not ids:
        raise ValueError(
            f"an index needs texts and as many ids: {len(postings.lengths)} texts, {len(ids)} ids"
        )
    terms = sorted(postings.term_numbers, key=str.encode)
    rank_of_term = np.empty(len(terms), np.int32)
    rank_of_term[[postings.term_numbers[term] for term in terms]] = np.arange(len(terms), dtype=np.int32)
    documents, saturation, posting_ends = _by_term(postings, rank_of_term)
    encoded = [term.encode() for term in terms]
    starts = np.concatenate([[0], posting_ends[:-1]]).astype(np.int64)
    tie_rank = np.empty(len(ids), np.int32)
    tie_rank[np.argsort(np.array(ids, dtype=np.str_), kind="stable")] = np.arange(len(ids), dtype=np.int32)
    return SearchIndex(
        term_text=np.frombuffer(b"".join(encoded), np.uint8),
        term_ends=np.cumsum([len(term) for term in encoded], dtype=np.int64),
        posting_ends=posting_ends,
        documents=documents,
        saturation=saturation,
        peak_saturation=np.maximum.reduceat(saturation, starts) if len(terms) else saturation,
        tie_rank=tie_rank,
    )


def _read(texts: Iterable[str]) -> _Postings:
    postings = _Postings()
    numbers = postings.term_numbers
    number_of_word: dict[str, int] = {}
    for document, text in enumerate(texts):
        found: list[int] = []
        for word in words(text):
            number = number_of_word.get(word)
            if number is None:
                term = term_of(word)
                number = -1 if term is None else numbers.setdefault(term, len(numbers))
                number_of_word[word] = number
            if number >= 0:
                found.append(number)
        postings.lengths.append(len(found))
        counts = Counter(found)
        block = postings.blocks[-1]
        block.terms.extend(counts.keys())
        block.frequencies.extend(min(count, _MAX_FREQUENCY) for count in counts.values())
        block.documents.extend([document] * len(counts))
        if len(block.terms) >= _POSTINGS_PER_BLOCK:
            postings.blocks.append(_Block())
    return postings


def _inverse_norms(lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """1 / (k1 (1 - b + b length / average length)) of each document, lengths as one byte keeps them."""
    average = np.float32(lengths.sum(dtype=np.int64) / max(np.count_nonzero(lengths), 1))
    codes, inverse = np.unique(lengths, return_inverse=True)
    kept = np.array([decode_length(encode_length(int(length))) for length in codes], np.float32)
    norms = K1 * ((np.float32(1) - B) + B * kept / average)
    return (np.float32(1) / norms)[inverse]


def _by_term(
    postings: _Postings, rank_of_term: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """``(documents, saturation, posting ends)`` ordered by term, then document: a counting sort by blocks."""
    inverse_norms = _inverse_norms(np.array(postings.lengths, np.int32))
    counts = np.zeros(len(rank_of_term), np.int64)
    for block in postings.blocks:
        counts += (
            np.bincount(rank_of_term[np.array(block.terms)], minlength=len(counts)) if block.terms else 0
        )
    ends = np.cumsum(counts)
    cursor = ends - counts
    documents = np.empty(int(counts.sum()), np.int32)
    saturation = np.empty(len(documents), np.float32)
    for block in postings.blocks:
        if not block.terms:
            continue
        ranks = rank_of_term[np.array(block.terms)]
        order = np.argsort(ranks, kind="stable")
        ranks = ranks[order]
        first = np.searchsorted(ranks, ranks)
        places = cursor[ranks] + np.arange(len(ranks)) - first
        block_documents = np.array(block.documents, np.int32)[order]
        frequencies = np.array(block.frequencies, np.float32)[order]
        documents[places] = block_documents
        saturation[places] = np.float32(1) + frequencies * inverse_norms[block_documents]
        cursor += np.bincount(ranks, minlength=len(cursor))
    return documents, saturation, ends

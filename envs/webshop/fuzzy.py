"""How alike two texts are: the token-set ratio of thefuzz 0.22, in percent.

Each text is its set of words (letters and digits, lower case; the characters U+0080 to U+00FF vanish,
anything else separates). With S the shared words, A and B the rest of either side, each in ascending order
and joined by spaces, the ratio is the best indel similarity among S, S+A and S+B; 100 if one side has no
rest.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+")
_VANISHING = {code: None for code in range(0x80, 0x100)}
_CACHED_PAIRS = 1 << 15
_CACHED_TEXTS = 1 << 14


@lru_cache(maxsize=_CACHED_TEXTS)
def word_set(text: str) -> frozenset[str]:
    """The words of ``text`` that count."""
    return frozenset(_WORD.findall(text.translate(_VANISHING).lower()))


@lru_cache(maxsize=_CACHED_PAIRS)
def token_set_ratio(left: str, right: str) -> int:
    """0 to 100, rounded half to even; 0 if either text has no words."""
    left_words, right_words = word_set(left), word_set(right)
    if not left_words or not right_words:
        return 0
    shared = left_words & right_words
    left_rest = " ".join(sorted(left_words - shared))
    right_rest = " ".join(sorted(right_words - shared))
    if shared and not (left_rest and right_rest):
        return 100
    shared_length = len(" ".join(shared))
    separator = 1 if shared else 0
    left_length = shared_length + separator + len(left_rest)
    right_length = shared_length + separator + len(right_rest)
    ratio = _similarity(_indel_distance(left_rest, right_rest), left_length + right_length)
    if shared:
        for length in (left_length, right_length):
            ratio = max(ratio, _similarity(length - shared_length, shared_length + length))
    return round(ratio)


def _similarity(distance: int, total_length: int) -> float:
    return 100 - 100 * distance / total_length


def _indel_distance(left: str, right: str) -> int:
    """Insertions and deletions from one text to the other.

    Bit-parallel longest common subsequence: H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004.
    """
    places: dict[str, int] = {}
    for index, letter in enumerate(left):
        places[letter] = places.get(letter, 0) | 1 << index
    mask = (1 << len(left)) - 1
    unmatched = mask
    for letter in right:
        matched = unmatched & places.get(letter, 0)
        unmatched = ((unmatched + matched) | (unmatched - matched)) & mask
    common = len(left) - unmatched.bit_count()
    return len(left) + len(right) - 2 * common

"""The Porter stemmer as Lucene runs it: words of up to two letters stay, -bli and -logi are suffixes too.

Source: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the two extensions of the
author's own later implementation. Anything that is not one of the vowels a e i o u, or a y after a consonant,
counts as a consonant, digits and accented letters included.
"""

from __future__ import annotations

_VOWELS = frozenset("aeiou")

_STEP_2 = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("logi", "log"),
)
_STEP_3 = (
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou"),
    *("ism", "ate", "iti", "ous", "ive", "ize"),
)


def stem(word: str) -> str:
    """The stem of a lower-case word."""
    if len(word) <= 2:
        return word
    word = _plurals(word)
    word = _past_and_progressive(word)
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replace_suffix(word, _STEP_2)
    word = _replace_suffix(word, _STEP_3)
    word = _strip_suffix(word)
    return _tidy_end(word)


def _is_consonant(word: str, index: int) -> bool:
    letter = word[index]
    if letter == "y":
        return index == 0 or not _is_consonant(word, index - 1)
    return letter not in _VOWELS


def _measure(stem_part: str) -> int:
    """How often a vowel is followed by a consonant: the m of [C](VC)^m[V]."""
    measure = 0
    after_vowel = False
    for index in range(len(stem_part)):
        consonant = _is_consonant(stem_part, index)
        measure += after_vowel and consonant
        after_vowel = not consonant
    return measure


def _has_vowel(stem_part: str) -> bool:
    return any(not _is_consonant(stem_part, index) for index in range(len(stem_part)))


def _ends_in_double_consonant(word: str) -> bool:
    return len(word) >= 2 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _ends_in_short_syllable(word: str) -> bool:
    """Consonant, vowel, consonant, the last one not w, x or y."""
    last = len(word) - 1
    return (
        last >= 2
        and word[last] not in "wxy"
        and _is_consonant(word, last)
        and not _is_consonant(word, last - 1)
        and _is_consonant(word, last - 2)
    )


def _plurals(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _past_and_progressive(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        if word.endswith(suffix):
            stem_part = word[: -len(suffix)]
            return _restore_end(stem_part) if _has_vowel(stem_part) else word
    return word


def _restore_end(word: str) -> str:
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _ends_in_double_consonant(word):
        return word if word[-1] in "lsz" else word[:-1]
    if _measure(word) == 1 and _ends_in_short_syllable(word):
        return word + "e"
    return word


def _replace_suffix(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    for suffix, replacement in rules:
        if word.endswith(suffix):
            stem_part = word[: -len(suffix)]
            return stem_part + replacement if _measure(stem_part) > 0 else word
    return word


def _strip_suffix(word: str) -> str:
    for suffix in _STEP_4:
        if word.endswith(suffix):
            stem_part = word[: -len(suffix)]
            if suffix == "ion" and not stem_part.endswith(("s", "t")):
                continue
            return stem_part if _measure(stem_part) > 1 else word
    return word


def _tidy_end(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_in_short_syllable(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word

"""Text to index terms, as Lucene's English analyzer does it.

Words by the Unicode word-break rules (UAX #29) with emoji as words of their own, then: a trailing 's is
dropped, lower case, stop words out, Porter stems. Text without any character beyond ASCII takes a shorter
pattern that says the same.
"""

from __future__ import annotations

import re
from functools import lru_cache

import regex

from envs.webshop.porter import stem

MAX_WORD_LENGTH = 255
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with".split()
)

_CACHED_WORDS = 1 << 18
_EXTENDING = r"[\p{WB=Format}\p{WB=Extend}\p{WB=ZWJ}]"
_SKIN_TONES = "\U0001f3fb-\U0001f3ff"


def _character_class(ranges: str) -> str:
    """``"a9 21a9-21aa"`` (code points in hexadecimal) as the inside of a character class."""
    return "".join("-".join(chr(int(code, 16)) for code in part.split("-")) for part in ranges.split())


# Extended_Pictographic as of Unicode 11, which the original's analyzer has; later versions took symbols out.
_PICTOGRAPHS = _character_class(
    "a9 ae 203c 2049 2122 2139 2194-2199 21a9-21aa 231a-231b 2328 2388 23cf 23e9-23f3 23f8-23fa 24c2 "
    "25aa-25ab 25b6 25c0 25fb-25fe 2600-2605 2607-2612 2614-2685 2690-2705 2708-2712 2714 2716 271d "
    "2721 2728 2733-2734 2744 2747 274c 274e 2753-2755 2757 2763-2767 2795-2797 27a1 27b0 27bf "
    "2934-2935 2b05-2b07 2b1b-2b1c 2b50 2b55 3030 303d 3297 3299 1f000-1f0ff 1f10d-1f10f 1f12f "
    "1f16c-1f171 1f17e-1f17f 1f18e 1f191-1f19a 1f1ad-1f1e5 1f201-1f20f 1f21a 1f22f 1f232-1f23a "
    "1f23c-1f23f 1f249-1f3fa 1f400-1f53d 1f546-1f64f 1f680-1f6ff 1f774-1f77f 1f7d5-1f7ff 1f80c-1f80f "
    "1f848-1f84f 1f85a-1f85f 1f888-1f88f 1f8ae-1f8ff 1f90c-1f93a 1f93c-1f945 1f947-1fffd"
)


def _ascii_pattern() -> re.Pattern[str]:
    number = r"[0-9](?:(?:_*|[.,;'])[0-9])*"
    letters = r"[A-Za-z](?:(?:_*|[.:'])[A-Za-z])*"
    core = f"(?:{number}|{letters})+"
    return re.compile(f"_*{core}(?:_+{core})*_*")


def _unicode_pattern() -> regex.Pattern[str]:
    """The same words for any text. ``extend`` is what rule WB4 attaches to the character before."""
    extend = rf"[{_EXTENDING}--[{_SKIN_TONES}]]*"
    number = rf"[\p{{WB=Numeric}}\uFF10-\uFF19]{extend}"
    letter = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{extend}"
    hebrew = rf"\p{{WB=Hebrew_Letter}}{extend}"
    katakana = rf"\p{{WB=Katakana}}{extend}"
    joiner = rf"(?:\p{{WB=ExtendNumLet}}{extend})"
    mid_number = rf"(?:[,;\p{{WB=MidNum}}\p{{WB=MidNumLet}}']{extend})"
    mid_letter = rf"(?:[:\p{{WB=MidLetter}}\p{{WB=MidNumLet}}']{extend})"
    core = (
        rf"(?:{katakana}(?:{joiner}*{katakana})*"
        rf"|(?:{hebrew}(?:'{extend}|\"{extend}{hebrew})"
        rf"|{number}(?:(?:{joiner}*|{mid_number}){number})*"
        rf"|{letter}(?:(?:{joiner}*|{mid_letter}){letter})*)+)"
    )
    word = rf"{joiner}*{core}(?:{joiner}+{core})*{joiner}*"
    ideogram = rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{extend}"
    complex_script = rf"(?:\p{{LB=Complex_Context}}{extend})+"
    return regex.compile(f"{_emoji_pattern()}|{word}|{complex_script}|{ideogram}", regex.VERSION1)


def _emoji_pattern() -> str:
    """An emoji with its modifiers, joined emoji, keycaps and flags (UTS #51)."""
    extend = rf"[{_EXTENDING}--[\u200D\uFE0E\uFE0F{_SKIN_TONES}]]*"
    emoji = rf"(?:[{_PICTOGRAPHS}]{extend})"
    modifier = rf"(?:[{_SKIN_TONES}]{extend})"
    base = rf"(?:\p{{Emoji_Modifier_Base}}{extend})"
    one = rf"(?:(?:\u200D*{base})?{modifier}|\u200D*{emoji}\uFE0F?)"
    tagged = r"[\U000E0020-\U000E007E]+\U000E007F"
    keycap = rf"[0-9#*]{extend}\uFE0F?\u20E3{extend}"
    flag = rf"(?:\p{{RI}}{extend}){{2}}"
    return rf"(?:{one}(?:{tagged}|(?:\u200D{one})*)\u200D*|{keycap}|{flag})"


_ASCII_WORD = _ascii_pattern()
_UNICODE_WORD = _unicode_pattern()
_NON_ASCII_PIECE = re.compile(r"[^ ]*[^\x00-\x7f][^ ]*")


def words(text: str) -> list[str]:
    """The words of ``text``, in no particular order; longer ones are cut every 255 characters."""
    if text.isascii():
        found = _ASCII_WORD.findall(text)
    else:
        # A space ends every word, so only the pieces that need the long pattern get it.
        pieces = _NON_ASCII_PIECE.findall(text)
        found = _ASCII_WORD.findall(_NON_ASCII_PIECE.sub(" ", text))
        found += _UNICODE_WORD.findall(" ".join(pieces))
    if any(len(word) > MAX_WORD_LENGTH for word in found):
        return [word[i : i + MAX_WORD_LENGTH] for word in found for i in range(0, len(word), MAX_WORD_LENGTH)]
    return found


@lru_cache(maxsize=_CACHED_WORDS)
def term_of(word: str) -> str | None:
    """The index term of a word; None for a stop word."""
    if len(word) >= 2 and word[-1] in "sS" and word[-2] in "'’＇":
        word = word[:-2]
    word = word.lower()
    return None if word in STOP_WORDS else stem(word)


def terms(text: str) -> list[str]:
    """The index terms of ``text``, repeats kept, in no particular order."""
    return [term for word in words(text) if (term := term_of(word)) is not None]

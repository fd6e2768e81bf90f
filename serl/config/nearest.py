"""The name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of ``names`` most like ``word``; None if none is close."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)), None)


def name_hint(word: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or ``"; known: …"`` with all of ``names`` if none is close."""
    names = list(names)
    close = nearest(word, names)
    return f"; known: {', '.join(names)}" if close is None else f"; did you mean {close!r}?"

"""Fuzzing by hypothesis: a few examples, always the same ones; many more, at random, where somebody asks."""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# `SERL_FUZZ_EXAMPLES=20000 pytest tests/unit/test_fuzz_*.py` looks further than every check does.
_ASKED_FOR = int(os.environ.get("SERL_FUZZ_EXAMPLES", "0"))

# Half of a UTF-16 pair is a character to Python's str, and none to UTF-8.
any_character = st.characters(exclude_categories=())
any_text = st.text(any_character, max_size=30)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from([10**400, -(2**64), 1e308, 5e-324])
    | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


def fuzzed(num_examples: int) -> settings:
    """As decorator of a test with `hypothesis.given`: how many examples the check in the unit tier tries."""
    return settings(
        max_examples=_ASKED_FOR or num_examples,
        derandomize=not _ASKED_FOR,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` cut short, or with a few places where bytes are lost, doubled or others."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(damaged)))
        length = draw(st.sampled_from([0, 1, 1, 2, 8, 64, 100_000]))
        others = draw(st.sampled_from([b"", b"\n", b"\0", b'"', b"\xff", b"{", b"1e999", b"\xe2\x80\xa8"]))
        doubled = bytes(damaged[at : at + length]) if draw(st.booleans()) else b""
        damaged[at : at + length] = others + doubled + doubled
    return bytes(damaged)


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> Any:
    """A copy of ``value`` in which something, somewhere, is missing or anything else."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(json_values)
    damaged = copy.copy(value)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 5)) == 0:
        del damaged[key]
    else:
        damaged[key] = draw(damaged_json(value[key]))
    return damaged

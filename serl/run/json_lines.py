"""Reading the ``.jsonl`` files of a run, which a killed process or a bad disk may have left damaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


def parse_line(line: bytes, parse: Callable[[Any], T]) -> T:
    """What ``parse`` makes of the JSON value in ``line``; it may raise ValueError, TypeError, KeyError.

    Raises ValueError, whatever is wrong.
    """
    try:
        return parse(json.loads(line))
    except KeyError as error:
        raise ValueError(f"no {error}") from error
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_lines(file: Path, parse: Callable[[Any], T]) -> list[T]:
    """The lines of ``file`` as `parse_line` reads them; none without a file.

    Those that do not read are left out; a warning says how many they are, and what is wrong with the first.
    """
    found: list[T] = []
    problems: list[str] = []
    # Bytes: a damaged file may hold what is no text, and JSON strings may hold U+2028.
    for number, line in enumerate(file.read_bytes().split(b"\n") if file.exists() else (), start=1):
        if not line.strip():
            continue
        try:
            found.append(parse_line(line, parse))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        logger.warning("%s: %d lines are damaged and left out; %s", file, len(problems), problems[0])
    return found


def row_of(value: Any) -> dict[str, Any]:
    """A line's object. Raises ValueError if it has no "iteration" that is a whole number."""
    if not isinstance(value, dict) or not is_whole(value.get("iteration")):
        raise ValueError("no object with an iteration")
    return value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

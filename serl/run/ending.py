"""Why a run ended: a sentence for the console, the traceback for the driver's log."""

from __future__ import annotations

import re
import traceback

from serl.rollout.failures import TooManyFailuresError, first_line
from serl.run.failures import FAILURES
from serl.run.run_dir import RunDir

_OWN_PACKAGES = ("serl.", "envs.")
_MAX_LINES = 3
_TRACEBACK = "Traceback (most recent call last):"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def explain(error: Exception, run_dir: RunDir) -> str | None:
    """What to tell a person of the error that ends a run, with the file that has the rest.

    None if nobody expected it: then its traceback is the best explanation there is. The driver's log gets it
    in either case.
    """
    with run_dir.driver_log.open("a", encoding="utf-8", errors="replace") as log:
        traceback.print_exception(error, file=log)
    if isinstance(error, TooManyFailuresError):
        return f"{error}. What failed, and how often: {run_dir.path / FAILURES}"
    told = _sentence(error)
    return told and f"{told}\nthe traceback is in {run_dir.driver_log}"


def _sentence(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    module, text = type(error).__module__, _shortened(str(error))
    if module.startswith(_OWN_PACKAGES) or type(error) is TimeoutError:
        return text or None
    if module.startswith("ray.") or isinstance(error, OSError):
        return f"{type(error).__name__}: {text}"
    if type(error) in (Exception, RuntimeError) and _raised_in(error).startswith("ray."):
        return f"Ray: {text}"
    return None


def _raised_in(error: Exception) -> str:
    """The name of the module."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def _shortened(text: str) -> str:
    """``text``; of a traceback in it only what was raised, after what the first line says."""
    lines = [line.strip() for line in _COLOURS.sub("", text).splitlines() if line.strip()]
    if len(lines) < 2 or (len(lines) <= _MAX_LINES and _TRACEBACK not in text):
        return "\n".join(lines)
    first, last = first_line(lines[0].removesuffix(_TRACEBACK).rstrip(": ")), first_line(lines[-1])
    return ": ".join(part for part in (first.removesuffix(last).rstrip(": "), last) if part)

"""Paths as people write them: ``~``, ``~user``, ``$NAME``, relative to the folder a command runs in."""

from __future__ import annotations

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


class UnknownPathError(ValueError):
    """A path names a variable or a user that there is not."""


def expanded_path(text: str) -> Path:
    """The absolute path that ``text`` names, whether or not it exists.

    Raises UnknownPathError for a variable that is not set or empty, and for a user without a home: taken as
    they stand, they would be folders of those names. So it does for what no path can be.
    """
    if not text.strip():
        raise UnknownPathError(f"{text!r}: the path is empty")
    if "\0" in text:
        raise UnknownPathError(f"{text!r}: no path has a character of code 0")
    for name in named_variables(text):
        if not os.environ.get(name):
            raise UnknownPathError(
                f"{text!r}: the environment variable {name} is not set; export it, or write the folder itself"
            )
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise UnknownPathError(f"{text!r}: {user} has no home folder here; write the folder itself")
    return Path(expanded).absolute()


def named_variables(text: str) -> list[str]:
    """The environment variables that ``text`` names, as ``$NAME`` or ``${NAME}``."""
    return [match[1] or match[2] for match in _VARIABLE.finditer(text)]


def blocked_by(folder: Path) -> Path | None:
    """What keeps files from being made in ``folder``, or ``folder`` itself; None if nothing does.

    It is the nearest that there is of ``folder`` and the folders above it, where that cannot be written.
    """
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return None if writable else existing

"""Packages that an adapter needs, and that SERL does not install by itself."""

from __future__ import annotations

import importlib
from typing import Any


class MissingPackageError(ValueError):
    """An adapter's package is not installed."""


def require(module: str, extra: str) -> Any:
    """``module``; raises MissingPackageError that names SERL's ``extra`` which installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the environment needs the package {error.name!r}: pip install 'serl[{extra}]'"
        ) from error

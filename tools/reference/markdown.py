"""Pieces of Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

GENERATED = "<!-- Written by `python -m tools.reference`; change the code, not this page. -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are one line each, and a `|` in them is text."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def from_docstring(text: str | None) -> str:
    """A docstring, or a field's, as Markdown paragraphs: one line each, code in single backticks."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).replace("``", "`")


def one_line(text: str | None) -> str:
    return " ".join(from_docstring(text).split())


def page(title: str, *parts: Sequence[str]) -> str:
    """A whole generated page, its parts one below the other."""
    blocks = [[f"# {title}"], [GENERATED], *parts]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"

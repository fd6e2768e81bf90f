"""The reference pages, written from the code that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tools.reference.config_page import config_page
from tools.reference.metrics_page import metrics_page

REPOSITORY = Path(__file__).resolve().parents[2]

PAGES: Mapping[str, Callable[[], str]] = {
    "serl/config/REFERENCE.md": config_page,
    "serl/run/METRICS.md": metrics_page,
}


def write_pages(repository: Path = REPOSITORY) -> list[Path]:
    """Writes every page below ``repository``; returns those that changed."""
    changed = outdated_pages(repository)
    for path in changed:
        path.write_text(PAGES[str(path.relative_to(repository))](), encoding="utf-8")
    return changed


def outdated_pages(repository: Path = REPOSITORY) -> list[Path]:
    """The pages below ``repository`` that are missing or say something else than the code."""
    return [
        path
        for name, page in PAGES.items()
        if not (path := repository / name).is_file() or path.read_text(encoding="utf-8") != page()
    ]

"""Where recorded answers lie: a few of our own, and many more beside the checkout where somebody has them."""

from __future__ import annotations

from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared"


def recordings(name: str) -> list[Path]:
    """The folders called ``name``, our own first."""
    return [folder for folder in (FIXTURES / name, BESIDE_CHECKOUT / name) if folder.is_dir()]


def origin(folder: Path) -> str:
    """Names a folder of ``recordings`` in the id of a test."""
    return "fixtures" if folder.is_relative_to(FIXTURES) else "shared"

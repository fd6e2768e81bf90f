"""Experiments written to files, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from serl.config.errors import ConfigError
from serl.config.load import load_experiment

MINIMAL = "name: test\nmodel:\n  path: embedded:tiny_alfworld\n"


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problem_of(folder: Path, text: str = MINIMAL, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(folder, text), overrides)
    return str(caught.value)

"""The expressions of the dashboard and of the alerts, and a Prometheus where there is one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.monitoring.panels import expressions

MONITORING = Path(__file__).resolve().parents[2] / "tools" / "monitoring"
# Where nothing but the comparison with a number is left of it, an alert's expression is a curve.
_THRESHOLD = re.compile(r"\s[<>]=?\s[\d.]+$")


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; skips the test where Debian's package is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}: apt-get install prometheus")
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def watched(alert: dict[str, Any]) -> str:
    """The expression of ``alert`` without its threshold."""
    return _THRESHOLD.sub("", alert["expr"])


def all_expressions() -> Iterator[tuple[str, str]]:
    """Title and PromQL of every curve of the dashboard and of every alert, thresholds left out."""
    yield from expressions()
    for alert in alerts():
        yield alert["alert"], watched(alert)

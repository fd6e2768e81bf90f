"""What was found of one thing that a run needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "wrong", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``wrong``: the experiment asks for what does not exist; ``missing``: this machine lacks it."""

    verdict: Verdict
    subject: str
    text: str

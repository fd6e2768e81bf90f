"""The page as a file: template, style, script and data in one, with nothing that asks the network.

Texts of models and environments stay inert twice over: in the file every ``<`` of the data is ``\\u003c``, so
no text ends its script element, and the script puts them on the page as text nodes. A content security
policy lets only this very script and style run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ASSETS = Path(__file__).parent
_SCRIPTS = ("charts.js", "steps.js", "page.js")


def write_page(file: Path, title: str, summary: dict[str, Any], trajectories: Iterable[str]) -> None:
    """Writes the page; ``trajectories`` are JSON texts in the order of ``summary["trajectories"]``.

    Raises OSError if ``file`` cannot be written.
    """
    before, after = _around_data(title, "file.js", "")
    # A folder's name may hold bytes that are no text; written as an escape they are valid in JSON.
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as opened:
        opened.write(before)
        opened.write(_data("summary-data", json.dumps(summary, ensure_ascii=False, allow_nan=False)))
        for index, trajectory in enumerate(trajectories):
            opened.write(_data(f"trajectory-{index}", trajectory))
        opened.write(after)


def live_page(title: str) -> str:
    """The page that asks the server it came from for all data, and for nothing else."""
    return "".join(_around_data(title, "live.js", "connect-src 'self'; "))


def _around_data(title: str, source_of_data: str, connections: str) -> tuple[str, str]:
    """The page before and after its data."""
    style = _asset("page.css")
    script = '"use strict";\n' + "\n".join(_asset(name) for name in (*_SCRIPTS, source_of_data))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        f"{connections}base-uri 'none'; form-action 'none'"
    )
    parts = {"TITLE": html.escape(title), "POLICY": policy, "STYLE": style, "SCRIPT": script}
    before, after = _asset("page.html").split("{{DATA}}")
    return _filled(before, parts), _filled(after, parts)


def _data(identifier: str, json_text: str) -> str:
    # In JSON a < stands only inside strings, where \u003c means the same.
    escaped = json_text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{identifier}">{escaped}</script>\n'


def _filled(template: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")

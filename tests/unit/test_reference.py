"""The reference pages say what the code says, and every metric that the code names is described."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serl.run.metrics_reference import GROUPS, METRICS, undescribed
from tools.reference.__main__ import main
from tools.reference.config_page import config_page, value_words
from tools.reference.markdown import from_docstring, table
from tools.reference.pages import PAGES, REPOSITORY, outdated_pages, write_pages

_METRIC = re.compile(rf"(?:{'|'.join(GROUPS)})/[\w/<>]*\w[\w/<>]*")


def test_the_pages_are_current() -> None:
    assert outdated_pages() == [], "run python -m tools.reference"
    assert main(["--check"]) == 0


def test_a_page_that_says_something_else_is_found_and_written_anew(tmp_path: Path) -> None:
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True)
    assert len(write_pages(tmp_path)) == len(PAGES)
    assert outdated_pages(tmp_path) == []
    page = tmp_path / "serl/run/METRICS.md"
    page.write_text(page.read_text() + "one more line\n")
    assert outdated_pages(tmp_path) == [page]
    assert write_pages(tmp_path) == [page]
    assert "one more line" not in page.read_text()


def test_every_key_is_described() -> None:
    rows = [line for line in config_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_section_and_every_entry_says_what_it_is() -> None:
    headings = re.findall(r"^##+ (`.*`)\n\n(\||#)?", config_page(), re.MULTILINE)
    assert {"`training`", "`hindsight.judge`", "`grpo`", "`ppo_clip`"} <= {name for name, _ in headings}
    assert [name for name, begins_with in headings if begins_with] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0, ≤ 1"),
        ({"enum": ["a", "b", "c"], "type": "string"}, "`a`, `b` or `c`"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or `null`"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]}, "[number, integer]"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({}, "any value"),
    ],
)
def test_what_a_value_must_be_is_said_in_words(schema: dict[str, object], words: str) -> None:
    assert value_words(schema) == words


def test_docstrings_become_markdown_paragraphs() -> None:
    assert from_docstring("One ``a``\n    line.\n\n    Two.") == "One `a` line.\n\nTwo."
    assert table(("x",), [("a|b",)]) == ["| x |", "| --- |", "| a\\|b |"]


def test_a_metric_that_the_table_lacks_is_found() -> None:
    known = ["rollout/success", "rollout/end_success", "total/env_steps", "weights_seq_no"]
    assert undescribed([*known, "rollout/succes", "learner/x", "weights_seq_no/x"]) == [
        "learner/x",
        "rollout/succes",
        "weights_seq_no/x",
    ]


def test_every_meaning_is_a_sentence() -> None:
    assert [name for name, meaning in METRICS.items() if not re.fullmatch(r"\S.*\.", meaning)] == []


def _named_metrics(source: Path) -> Iterator[str]:
    """Strings of the code that name a metric; what an f-string fills in is ``x``."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "x" for part in node.values]
            text = "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if _METRIC.fullmatch(text) and text[-1] not in "/_":
            yield text


def test_every_metric_that_the_code_names_is_described() -> None:
    """Left out are names of which the code has the first part only, as ``learner/{name}``."""
    found: dict[str, set[str]] = {}
    for source in [path for folder in ("serl", "tools") for path in (REPOSITORY / folder).rglob("*.py")]:
        # What reports read may be of SERL 0.1.
        if source != REPOSITORY / "tools/report/reading.py":
            for name in _named_metrics(source):
                if name.split("/")[1:] != ["x"]:
                    found.setdefault(name, set()).add(str(source.relative_to(REPOSITORY)))
    assert {"rollout/success", "time/iteration_s", "evaluation/success"} <= found.keys()
    assert {name: found[name] for name in undescribed(found)} == {}

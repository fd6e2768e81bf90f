"""What is written for people: links lead somewhere, every room has its page, examples compile, YAML loads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from serl.config.renamed import CHANGED

_REPOSITORY = Path(__file__).resolve().parents[2]
_ROOMS = ("serl", "envs", "tools", "tests", "experiments")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def _pages() -> list[Path]:
    folders = (_REPOSITORY / folder for folder in (".github", *_ROOMS))
    return [_REPOSITORY / "README.md", *(page for folder in folders for page in sorted(folder.rglob("*.md")))]


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def _anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings: lower case, punctuation gone, spaces as hyphens."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken_links(page: Path, root: Path = _REPOSITORY) -> Iterator[str]:
    for target in _LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, fragment = unquote(target).partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or not found.is_relative_to(root):
            yield target
        elif fragment and found.suffix == ".md" and fragment not in _anchors(found):
            yield target


def _code_blocks(language: str) -> list[tuple[str, str]]:
    """Where each block of ``language`` begins, as file:line, and its text."""
    blocks = []
    for page in _pages():
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                blocks.append((f"{page.relative_to(_REPOSITORY)}:{line}", match[2]))
    return blocks


def test_every_relative_link_leads_somewhere() -> None:
    broken = {page.relative_to(_REPOSITORY): list(_broken_links(page)) for page in _pages()}
    assert {page: links for page, links in broken.items() if links} == {}


def test_links_to_missing_files_and_headings_and_out_of_the_repository_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](gone.md) [b](#one-heading) [c](#other) [d](../) `[e](code.md)` [f](https://x)"
    )
    assert list(_broken_links(page, tmp_path)) == ["gone.md", "#other", "../"]


def test_every_room_has_a_page() -> None:
    packages = {path.parent for path in (_REPOSITORY / "serl").glob("*/*.py")}
    rooms = [*(_REPOSITORY / folder for folder in _ROOMS), *sorted(packages)]
    assert [str(room.relative_to(_REPOSITORY)) for room in rooms if not (room / "README.md").is_file()] == []


@pytest.mark.parametrize(("where", "code"), _code_blocks("python"))
def test_python_examples_compile(where: str, code: str) -> None:
    compile(code, where, "exec")


@pytest.mark.parametrize(("where", "code"), _code_blocks("yaml"))
def test_yaml_examples_load(where: str, code: str) -> None:
    assert isinstance(yaml.safe_load(code), dict), where


@pytest.mark.parametrize(
    "path",
    [_REPOSITORY / ".pre-commit-config.yaml", *sorted((_REPOSITORY / ".github").rglob("*.yml"))],
    ids=lambda path: path.name,
)
def test_files_for_github_and_pre_commit_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_workflow_runs_check_and_may_only_read() -> None:
    text = (_REPOSITORY / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    steps = workflow["jobs"]["check"]["steps"]
    assert workflow["permissions"] == {"contents": "read"}
    assert [step["run"] for step in steps if "run" in step] == ["./tools/check"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert "secrets." not in text


def test_the_bug_template_asks_for_what_a_run_leaves_behind() -> None:
    template = yaml.safe_load((_REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    assert {"config.yaml", "versions.json", "logs/driver.log"} <= {
        field["attributes"]["label"] for field in template["body"]
    }


def test_pre_commit_downloads_nothing() -> None:
    config = yaml.safe_load((_REPOSITORY / ".pre-commit-config.yaml").read_text())
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for repository in config["repos"] for hook in repository["hooks"]} == {"system"}


def test_the_changelog_names_every_changed_key() -> None:
    changelog = (_REPOSITORY / ".github" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert CHANGED
    assert [key for key in CHANGED if f"| `{key}` |" not in changelog] == []

"""The Python examples of the documentation run: their imports are right, what they register is accepted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_examples_can_be_imported_together(tmp_path: Path) -> None:
    pages = [_REPOSITORY / "README.md", *(_REPOSITORY / "serl").glob("*/README.md")]
    examples = [code for page in pages for code in _EXAMPLE.findall(page.read_text(encoding="utf-8"))]
    assert len(examples) >= 3
    for number, code in enumerate(examples):
        (tmp_path / f"example_{number}.py").write_text(code, encoding="utf-8")
    imports = "; ".join(f"import example_{number}" for number in range(len(examples)))
    # In a process of its own: what they register stays registered.
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(_REPOSITORY)!r}]; {imports}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr

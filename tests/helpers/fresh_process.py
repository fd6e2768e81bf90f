"""What Python code imports in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def heavy_imports_of(code: str) -> list[str]:
    """Which of torch, Ray and vLLM are imported once ``code`` has run."""
    asked = "import json, sys; print(json.dumps([m for m in ('ray', 'torch', 'vllm') if m in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{asked}"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])

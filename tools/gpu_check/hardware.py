"""What this machine computes with, asked in a process of its own: CUDA is never begun in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

_TIMEOUT_S = 120.0
_ASK = """
import json, torch
gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
print()
print(json.dumps({
    "torch": torch.__version__,
    "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus],
}))
"""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The GPUs that torch can use, as (name, bytes)."""

    torch: str
    gpus: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        if not self.gpus:
            return f"no GPU that torch {self.torch} can use: stand-ins on processors"
        names = ", ".join(f"{name} ({size / 1e9:.0f} GB)" for name, size in self.gpus)
        return f"{names}, torch {self.torch}"


def this_hardware() -> Hardware:
    """Raises RuntimeError if torch cannot be asked."""
    asked = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if asked.returncode:
        raise RuntimeError(f"torch does not say which GPUs there are:\n{asked.stderr.strip()}")
    answer = json.loads(asked.stdout.splitlines()[-1])
    return Hardware(answer["torch"], tuple((name, size) for name, size in answer["gpus"]))

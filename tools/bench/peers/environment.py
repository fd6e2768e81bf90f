"""The peers' environment: made once, above the packages of this one, which it does not change."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from serl.models.resolve import cache_folder

# `rollout_func` and what this benchmark calls beside it are experimental there, and change with versions.
TRL = "trl==1.16.0"
_INSTALL_TIMEOUT_S = 1800.0


def default_folder() -> Path:
    """Below the user's cache folder. Raises ModelPathError as `cache_folder` does."""
    return cache_folder() / "peers"


def ready_environment(folder: Path) -> Path:
    """The Python of an environment in ``folder`` that has the peers, which is made there unless it is there.

    What they share with SERL (PyTorch, transformers, vLLM) is found among SERL's packages, so that both sides
    run the same versions; where a peer asks for another one, that comes first. Raises RuntimeError if
    installing fails, with what it said.
    """
    python, stamp = folder / "bin" / "python", folder / "peers.txt"
    wanted = f"{TRL} above {sysconfig.get_path('purelib')}\n"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    below = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    own = _call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    (Path(own) / "serl.pth").write_text(below, encoding="utf-8")
    _call([str(python), "-m", "pip", "install", "--quiet", TRL])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _call(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({ended.returncode}): {ended.stderr}{ended.stdout}")
    return ended.stdout

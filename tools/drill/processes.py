"""Which process of a run is what, by the titles that Ray gives them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from serl.run.processes import descendants

DRIVER, OTHER = "driver", "other"
_TITLES = {
    "ray::SERLEnvRunner": "env_runner",
    "ray::ServeReplica": "replica",
    "ray::SERLLearner": "learner",
    "ray::WeightStore": "weight_store",
    "ray::ServeController": "controller",
    "ray::IDLE": "idle_worker",
    "ray::": "ray_agent",
}
_PROGRAMS = {"gcs_server": "gcs", "raylet": "raylet"}
_PYTHON_PROGRAMS = {
    "serl.run.cli": DRIVER,
    "serl.run.guardian": "guardian",
    "ray/": "ray_agent",
}


def title_of(pid: int) -> str:
    """The command line of a process, which Ray's workers overwrite with what they do; "" if it has ended."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    return text.replace("\0", " ").strip()


def kind_of(title: str) -> str:
    """``driver``, ``env_runner``, ``replica``, … of a process with this title, or `OTHER`."""
    for start, kind in _TITLES.items():
        if title.startswith(start):
            return kind
    program = title.split(" ", 1)[0].rpartition("/")[2]
    if program in _PROGRAMS:
        return _PROGRAMS[program]
    return next((kind for part, kind in _PYTHON_PROGRAMS.items() if part in title), OTHER)


def processes_below(pid: int) -> dict[int, str]:
    """The kinds of the driver ``pid`` and of all below it, by their ids."""
    below = {found: kind_of(title) for found in descendants(pid) if (title := title_of(found))}
    # What was just forked has its parent's command line still.
    return {pid: DRIVER} | {found: OTHER if kind == DRIVER else kind for found, kind in below.items()}


def shared_memory_files() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def not_in_use(files: Iterable[Path]) -> list[Path]:
    """Those of ``files``, or of folders, that exist and that no living process maps or has open."""
    left = {file for file in files if file.exists()}
    if not left:
        return []
    for process in Path("/proc").glob("[0-9]*"):
        used = _used_by(process)
        left = {file for file in left if not any(f"{name}/".startswith(f"{file}/") for name in used)}
    return sorted(left)


def _used_by(process: Path) -> set[str]:
    used: set[str] = set()
    try:
        used.update(str(opened.readlink()) for opened in (process / "fd").iterdir())
        lines = (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return used  # it has just ended, or is another user's
    used.update(line.split(maxsplit=5)[5] for line in lines if " /dev/shm/" in line)
    return {name for name in used if name.startswith("/dev/shm/")}

"""Runs one check in a process of its own, with a deadline, and ends everything that it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from serl.config import ServingSection
from serl.run.processes import kill_descendants
from serl.serving.engine_options import replica_environment
from tools.gpu_check.checks import Check
from tools.gpu_check.child import RESULTS
from tools.gpu_check.results import Result, read_results

CHILD = (sys.executable, "-m", "tools.gpu_check.child")
_ROOT = Path(__file__).resolve().parents[2]
_KILL_S = 20.0


def run_check(
    check: Check, folder: Path, num_gpus: int, deadline_s: float, program: Sequence[str] = CHILD
) -> list[Result]:
    """A result for each part of ``check``; what its process, ``program``, wrote is in ``folder``."""
    obstacle = check.obstacle(num_gpus)
    if obstacle is not None:
        return [Result(part, "not tried", obstacle) for part in check.parts]
    is_stand_in = num_gpus < check.num_gpus
    folder.mkdir(parents=True)
    log, started = folder / "output.log", time.monotonic()
    used_gpus = 0 if is_stand_in else num_gpus
    command = [*program, check.function, str(folder), str(used_gpus)]
    ending = _ending(command, _environment(check, used_gpus), log, deadline_s)
    seconds = time.monotonic() - started
    found = {result.name: result for result in read_results(folder / RESULTS)}
    results = []
    for part in check.parts:
        why = ending or "it ended without a word of this"
        result = found.get(part) or Result(part, "FAILED", f"{why}; all it said is in {log}")
        if result.status == "passed" and is_stand_in:
            result = replace(result, status="stand-in")
        results.append(result if result.status == "not tried" else replace(result, seconds=seconds))
    if found.keys() >= set(check.parts) and ending:
        # It reported everything and ended badly all the same.
        results[-1] = replace(results[-1], status="FAILED", text=f"{ending}; all it said is in {log}")
    return results


def _environment(check: Check, num_gpus: int) -> dict[str, str]:
    environment = dict(os.environ)
    if check.is_replica:
        environment |= replica_environment(ServingSection(num_gpus_per_replica=num_gpus))
    if num_gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _ending(command: Sequence[str], environment: dict[str, str], log: Path, deadline_s: float) -> str:
    """How the process of ``command`` ended, empty if well; nothing of it is left."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=output, env=environment)
        try:
            status = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_KILL_S)
            return f"no end within {deadline_s:.0f} s"
        finally:
            kill_descendants(_KILL_S)
    if status == 0:
        return ""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return said[-1].strip() if status > 0 and said else f"its process ended with {status}"

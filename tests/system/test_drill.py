"""A run of `tools.drill` with three faults, one after another, and a clean ledger.

It goes on by itself after two of them; the third ends it at once, and the same command brings it to its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_FAULTS = "env_runner_stopped+learner_killed+sigint_twice"
_SMALL = ("training.num_iterations=12", "training.groups_per_batch=2", "env.max_steps=4")


def test_hung_and_dead_processes_are_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "drills"
    # In a process of its own: it adopts every orphan below it, and ends them.
    drilled = subprocess.run(
        [sys.executable, "-m", "tools.drill", _FAULTS, *_SMALL, "--out", out, "--deadline", "240"],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        timeout=580.0,
    )
    assert drilled.returncode == 0, drilled.stdout
    assert "| all | 3 of 3 | 0 |" in drilled.stdout
    (result,) = [json.loads(line) for line in (out / "drills.jsonl").read_text().splitlines()]
    assert result["outcome"] == "survived" and result["violations"] == []
    assert len(result["moments"]) == len(result["recovery_s"]) == 3
    # The second signal may come when the first one has done its work.
    assert result["exit_codes"] in ([130, 0], [0, 0])
    counters = result["counters"]
    assert counters["total/hung_env_runners"] >= 1
    assert counters["total/learner_restarts"] >= 1
    assert not Path(result["folder"]).exists()

"""A judge on the main loop: real Ray, Serve, vLLM, learner, started as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from judge_helpers import KEY, KEY_VARIABLE, running

_REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_run_is_judged_while_lambda_is_positive_and_writes_the_key_nowhere(tmp_path: Path):
    with running() as endpoint:
        settings = (
            "training.num_iterations=2",
            "training.groups_per_batch=2",
            "training.max_staleness=1",
            "learner.num_learners=0",
            "training.filter_groups=true",
            "env.max_steps=6",
            "evaluation.at_start=false",
            "evaluation.at_end=false",
            "hindsight.mode=judge_current_traj",
            "hindsight.lambda_decay_steps=1",
            f"hindsight.judge.base_url={endpoint.base_url}",
            "hindsight.judge.model=judge",
            f"hindsight.judge.api_key_env={KEY_VARIABLE}",
            f"output_dir={tmp_path}",
        )
        run = subprocess.run(
            [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml", *settings],
            cwd=_REPOSITORY,
            capture_output=True,
            text=True,
            timeout=500,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", KEY_VARIABLE: KEY},
        )
    assert run.returncode == 0, run.stdout + run.stderr
    (run_dir,) = tmp_path.iterdir()
    first, second = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert first["judge/answers"] >= 2 * 8 and first["judge/pending"] == 0
    assert first["learner/num_teacher_prompts"] > 0
    # λ is 0 from the second update on: the first one took its batch and gave up everything else.
    assert second["learner/effective_lambda"] == second["judge/requests"] == 0
    asked = first["judge/requests"] - first["judge/cached"] - first.get("judge/given_up", 0)
    assert asked <= len(endpoint.bodies) <= first["judge/requests"]
    assert set(endpoint.authorizations) == {f"Bearer {KEY}"}
    answers = (run_dir / "judge" / "answers.jsonl").read_text().splitlines()
    assert asked <= len(answers) <= len(endpoint.bodies)
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in run.stdout + run.stderr

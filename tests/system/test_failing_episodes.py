"""An environment that breaks in the middle of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from serl.run.checkpoint import list_checkpoints

_REPOSITORY = Path(__file__).resolve().parents[2]
_ENVIRONMENT = """
import os
from envs.example import GuessEnv, GuessProvider

class BreakingEnv(GuessEnv):
    def step(self, action):
        if os.path.exists(os.environ["SIMULATOR_IS_GONE"]):
            raise ConnectionError("simulator is gone")
        return super().step(action)

class BreakingProvider(GuessProvider):
    def make_env(self):
        return BreakingEnv()

def make_provider(args):
    return BreakingProvider()
"""
_EXPERIMENT = """
name: failing
model: {path: "embedded:tiny_alfworld", max_model_len: 512}
env: {name: "breaking_env:make_provider", max_steps: 3}
rollout: {num_cpus_per_env_runner: 0.5, max_prompt_length: 448, max_response_length: 32}
serving: {num_cpus_per_replica: 0.5, kv_cache_gib: 0.5}
training: {num_iterations: 1000, group_size: 2, groups_per_batch: 2}
evaluation: {split: valid, num_tasks: 2, at_start: false, at_end: false}
hindsight: {max_context_length: 480}
learner: {num_learners: 0}
checkpoint: {interval: 0}
cluster: {dashboard: false}
"""


def test_a_run_whose_episodes_all_fail_says_why_saves_a_checkpoint_and_ends(tmp_path: Path) -> None:
    (tmp_path / "breaking_env.py").write_text(_ENVIRONMENT)
    (tmp_path / "failing.yaml").write_text(_EXPERIMENT)
    gone, run_dir, console = tmp_path / "gone", tmp_path / "run", tmp_path / "console"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with console.open("w") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "serl.run.cli", tmp_path / "failing.yaml", "--resume-or-start", run_dir],
            cwd=_REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, "SIMULATOR_IS_GONE": str(gone)},
        )
    try:
        deadline = time.monotonic() + 400.0
        while not (run_dir / "metrics.jsonl").exists():
            assert run.poll() is None and time.monotonic() < deadline, console.read_text()
            time.sleep(0.1)
        gone.touch()
        code = run.wait(timeout=400.0)
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait(timeout=60.0)
    said = console.read_text()
    assert code == 1, said
    assert said.count("an episode failed (environment_error): task ") == 1
    assert (
        "step raised ConnectionError('simulator is gone'); further ones are counted in failures.jsonl" in said
    )
    *_, saving, ending = said.splitlines()
    assert saving == "TooManyFailuresError; saving a checkpoint"
    assert "more than rollout.max_failed_share = 0.5 allows; the last: task " in ending
    assert ending.endswith(f"simulator is gone'). What failed, and how often: {run_dir / 'failures.jsonl'}")
    (checkpoint,) = list_checkpoints(run_dir / "checkpoints")
    (line,) = [json.loads(line) for line in (run_dir / "failures.jsonl").read_text().splitlines()]
    assert (line["kind"], line["reason"]) == ("episode", "environment_error")
    # Half of four times the eight episodes that may be in flight.
    assert line["count"] > 16 and 'raise ConnectionError("simulator is gone")' in line["last_text"]
    assert checkpoint.name == f"iteration_{line['iteration']:06d}"

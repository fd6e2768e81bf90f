"""The same seed without staleness gives the same weights, through Ray, Serve, vLLM and learner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from serl.run.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "serl" / "policies" / "tiny_alfworld"
SETTINGS = (
    "training.max_staleness=0",
    "training.num_iterations=2",
    "training.groups_per_batch=2",
    "training.group_size=4",
    "env.max_steps=5",
    # Each request draws from a seed of its own, whatever else the engine is doing …
    "rollout.seeded_requests=true",
    # … and is computed alone and whole: which requests share a step of the engine, and which prefixes it has
    # cached, depends on timing, and sums of another shape may round in another way.
    "serving.max_num_seqs=1",
    "serving.engine_args.enable_prefix_caching=false",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "checkpoint.interval=1",
)


def checkpoints_of_a_run(output: Path, *overrides: str) -> list[Path]:
    command = [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml", *SETTINGS, *overrides]
    finished = subprocess.run(
        [*command, f"output_dir={output}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert finished.returncode == 0, finished.stderr
    (run_dir,) = output.iterdir()
    return list_checkpoints(run_dir / "checkpoints")


def test_the_same_seed_without_staleness_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    first, second = (checkpoints_of_a_run(tmp_path / name) for name in ("first", "second"))
    assert len(first) == len(second) == 2
    start = load_file(POLICY / "model.safetensors")
    for one, other in zip(first, second, strict=True):
        for file in ("policy/model", "learner/exp_avg", "learner/exp_avg_sq", "learner/teacher"):
            own, again = load_file(one / f"{file}.safetensors"), load_file(other / f"{file}.safetensors")
            assert own.keys() == again.keys()
            differing = [name for name in own if not own[name].equal(again[name])]
            assert not differing, f"{one.name}/{file}: {differing}"
        trained = load_file(one / "policy" / "model.safetensors")
        assert all(float((trained[name] - start[name]).abs().max()) > 1e-4 for name in trained)

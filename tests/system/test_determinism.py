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
SAVED = (
    "policy/model.safetensors",
    *(
        f"learner/{part}/shard-00001-model-00001-of-00001.safetensors"
        for part in ("weights", "teacher", "exp_avg", "exp_avg_sq")
    ),
)
SETTINGS = (
    "training.max_staleness=0",
    "training.num_iterations=2",
    "training.groups_per_batch=2",
    "training.group_size=2",
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


def start_run(output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serl.run.cli", "experiments/quickstart.yaml", *SETTINGS]
    return subprocess.Popen(
        [*command, f"output_dir={output}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def checkpoints_below(output: Path) -> list[Path]:
    (run_dir,) = output.iterdir()
    return list_checkpoints(run_dir / "checkpoints")


def test_the_same_seed_without_staleness_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    # At once: each disturbs the other one's timing, and most of a run is the start of its processes.
    outputs = [tmp_path / "first", tmp_path / "second"]
    runs = [start_run(output) for output in outputs]
    try:
        for run in runs:
            said, _ = run.communicate(timeout=500)
            assert run.returncode == 0, said
    finally:
        for run in runs:
            run.terminate()
    first, second = map(checkpoints_below, outputs)
    assert len(first) == len(second) == 2
    start = load_file(POLICY / "model.safetensors")
    for one, other in zip(first, second, strict=True):
        for file in SAVED:
            own, again = load_file(one / file), load_file(other / file)
            assert own.keys() == again.keys()
            differing = [name for name in own if not own[name].equal(again[name])]
            assert not differing, f"{one.name}/{file}: {differing}"
        trained = load_file(one / "policy" / "model.safetensors")
        assert all(float((trained[name] - start[name]).abs().max()) > 1e-4 for name in trained)

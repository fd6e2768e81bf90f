"""Checkpoints made by hand."""

from __future__ import annotations

from pathlib import Path

from serl.algorithm_state import algorithm_state_digest, write_algorithm_state
from serl.durable_files import write_hashed
from serl.manifest import write_manifest
from serl.run.checkpoint import checkpoint_path

WEIGHTS = "policy/model.safetensors"


def write_checkpoint(run_dir: Path, iteration: int) -> Path:
    """As small as one can be: a file of weights, what the algorithm counts, and the manifest."""
    folder = checkpoint_path(run_dir / "checkpoints", iteration)
    (folder / "policy").mkdir(parents=True)
    files = {WEIGHTS: write_hashed(folder / WEIGHTS, bytes(range(200)))}
    state = {"has_manifest": True, "weights_seq_no": iteration}
    write_manifest(folder, files | {"algorithm.json": algorithm_state_digest(state)})
    write_algorithm_state(folder, state)
    return folder

"""Weights broadcast to a replica of two workers: a real engine on CPU, with gloo in the place of NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import experiment, make_policy, save_tokenizer

from serl.serving.engine_options import replica_environment

ROOT = Path(__file__).resolve().parents[2]


def found_by(main: str, folder: Path) -> dict[str, Any]:
    """What ``main`` of `gloo_transfer` found, in a process of its own: environment variables are for it."""
    make_policy(0).save_pretrained(folder)
    save_tokenizer(folder)
    environment = replica_environment(experiment().serving) | {"CUDA_VISIBLE_DEVICES": ""}
    # Otherwise vLLM wants a NUMA node for each worker.
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    code = f"import sys, gloo_transfer; gloo_transfer.{main}(sys.argv[1])"
    finished = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | environment,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    # The workers write there too.
    (answer,) = (line for line in finished.stdout.splitlines() if line.startswith("{"))
    return json.loads(answer)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_by("main", tmp_path_factory.mktemp("policy"))


def test_two_workers_sample_as_transformers_does(found: dict[str, Any]) -> None:
    assert found["before"] < 1e-3


@pytest.mark.parametrize("version", [1, 2])
def test_a_broadcast_reaches_both_workers_and_old_weights_fail_the_same_check(
    found: dict[str, Any], version: int
) -> None:
    assert found[f"after_{version}"] < 1e-3
    assert found[f"old_after_{version}"] > 0.05
    assert found[f"version_{version}"] == version


def test_a_partial_update_of_two_workers_is_no_version(found: dict[str, Any]) -> None:
    assert "the update lacks weights for model.norm.weight" in found["error"]
    assert found["version_3"] == 2


def test_adapters_alone_reach_both_workers_in_flight_and_old_ones_fail_the_same_check(tmp_path: Path) -> None:
    found = found_by("main_of_adapters", tmp_path)
    assert found["before"] < 1e-3
    assert found["spans"] == [0, 1] and max(found["in_flight"]) < 1e-3
    # From NCCL's end of the engine, and, as a replica that starts late, from a file.
    for version in (1, 2):
        assert found[f"after_{version}"] < 1e-3
        assert found[f"old_after_{version}"] > 0.05
    # q 64 → 64, v 64 → 64, o 64 → 64, up 64 → 128, down 128 → 64: 4 bytes, of rank 4, in two layers.
    assert found["num_bytes"] == 4 * 4 * 2 * (3 * (64 + 64) + 2 * (64 + 128))
    assert "the update lacks weights for model.layers.1.mlp.down_proj.lora_B.weight" in found["error"]
    assert found["version_3"] == 2

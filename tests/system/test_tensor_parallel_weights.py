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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `gloo_transfer.main` found, in a process of its own, which the environment variables are for."""
    folder = tmp_path_factory.mktemp("policy")
    make_policy(0).save_pretrained(folder)
    save_tokenizer(folder)
    environment = replica_environment(experiment().serving) | {"CUDA_VISIBLE_DEVICES": ""}
    # Otherwise vLLM wants a NUMA node for each worker.
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    code = "import sys, gloo_transfer; gloo_transfer.main(sys.argv[1])"
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

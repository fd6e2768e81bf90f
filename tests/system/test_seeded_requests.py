"""Requests with seeds of their own, in a real engine that cannot take all their prompts in one step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.serving.engine_options import engine_arguments, replica_environment

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["rollout.seeded_requests=true", "serving.max_num_batched_tokens=512", "serving.kv_cache_gib=0.1"]
# 40 prompts of 101 tokens: the sixth of a step would be cut off at 512.
CODE = """
import json, queue
from serl.config.load import load_experiment
from serl.serving.engine import EngineThread
from serl.serving.engine_options import build_engine
from serl.serving.messages import make_request
from serl.types import Sampling

experiment = load_experiment("experiments/quickstart.yaml", {overrides})
answers = queue.Queue()
engine = EngineThread(lambda: build_engine(experiment, "serl/policies/tiny_alfworld", 0), answers.put)
engine.wait_until_built(120.0)
requests = [
    make_request(key, [30 + key] + list(range(50, 150)), Sampling(1.0, 8, ("</action>",), seed=key))
    for key in range(40)
]
found = []
for order in (requests, requests[::-1]):
    engine.submit(order, answers.put)
    responses = {{}}
    while len(responses) < len(requests):
        answered = answers.get(timeout=60.0)
        if isinstance(answered, BaseException):
            raise answered
        responses |= {{answer.key: answer.token_ids for answer in answered}}
    found.append(responses)
print(json.dumps(found))
"""


def seeded_experiment() -> ExperimentConfig:
    return load_experiment(ROOT / "experiments" / "quickstart.yaml", OVERRIDES)


def test_more_prompts_than_a_step_takes_are_sampled_by_their_seeds_in_any_order():
    finished = subprocess.run(
        [sys.executable, "-c", CODE.format(overrides=OVERRIDES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | replica_environment(seeded_experiment().serving) | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    first, reversed_order = json.loads(finished.stdout.splitlines()[-1])
    assert first == reversed_order
    assert len({tuple(response) for response in first.values()}) > 20, "the seeds hardly matter"


def test_a_step_of_an_engine_with_seeds_takes_the_longest_prompt_whole():
    arguments = engine_arguments(seeded_experiment(), "folder", 0)
    assert (arguments["enable_chunked_prefill"], arguments["max_num_batched_tokens"]) == (False, 512)
    smaller = load_experiment(
        ROOT / "experiments" / "quickstart.yaml", [*OVERRIDES, "serving.max_num_batched_tokens=64"]
    )
    assert engine_arguments(smaller, "folder", 0)["max_num_batched_tokens"] == smaller.model.max_model_len
    plain = load_experiment(ROOT / "experiments" / "quickstart.yaml")
    assert "enable_chunked_prefill" not in engine_arguments(plain, "folder", 0)

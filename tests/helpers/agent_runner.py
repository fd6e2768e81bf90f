"""An env runner that plays agents, in this process, behind a gateway over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway_helpers import chat_tokenizer, gateway_on_a_port
from runner_helpers import RunnerConfig

from serl.config import (
    EnvSection,
    ExperimentConfig,
    HindsightSection,
    ModelSection,
    RolloutSection,
    ServingSection,
)
from serl.gateway.tool_calls import ToolCallParser
from serl.rollout.env_runner import SERLEnvRunner
from serl.rollout.episode import Policy
from serl.rollout.prompt import PromptEncoder
from serl.rollout.report import RolloutReport
from serl.types import RolloutRequest

ENCODER = PromptEncoder(chat_tokenizer())


@contextmanager
def running(
    folder: Path,
    policy: Policy,
    env: EnvSection,
    tool_parser: ToolCallParser | None = None,
    **rollout: Any,
) -> Iterator[SERLEnvRunner]:
    """An env runner of ``env``, with a gateway in front of ``policy``."""
    ENCODER.tokenizer.save_pretrained(folder)
    experiment = ExperimentConfig(
        name="agents",
        model=ModelSection(path=str(folder), max_model_len=65536),
        env=env,
        rollout=RolloutSection(max_concurrent_episodes=4, max_prompt_length=60000, **rollout),
        serving=ServingSection(gateway=True),
        hindsight=HindsightSection(max_context_length=65536),
    )
    with gateway_on_a_port(policy, ENCODER, tool_parser) as gateway:
        config = RunnerConfig(experiment, str(folder))
        config.make_policy, config.make_gateway = lambda: policy, lambda: gateway
        runner = SERLEnvRunner(config=config, worker_index=1)
        yield runner
        runner.stop()


def play(runner: SERLEnvRunner, requests: list[RolloutRequest]) -> RolloutReport:
    """All of them, in the order of their rollout indices."""
    total = runner.exchange(requests, wait_s=0.0)
    deadline = time.monotonic() + 120.0
    while len(total.trajectories) + len(total.failures) < len(requests):
        assert time.monotonic() < deadline
        report = runner.exchange([], wait_s=1.0)
        assert not report.error, report.error
        total.trajectories += report.trajectories
        total.failures += report.failures
        total.counters.update(report.counters)
    total.trajectories.sort(key=lambda trajectory: trajectory.rollout_index)
    return total

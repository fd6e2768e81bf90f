"""An RLlib config of the least that an env runner is content with, on the corridor of `rollout_helpers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gymnasium
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from rollout_helpers import FORWARD, ScriptedClient, byte_tokenizer

from serl.config import EnvSection, ExperimentConfig, ModelSection, RolloutSection
from serl.rollout.env_runner import SERLEnvRunner
from serl.rollout.episode import Policy
from serl.rollout.gateway import Gateway
from serl.rollout.prompt import PromptEncoder


class RunnerConfig(AlgorithmConfig):
    def __init__(self, experiment: ExperimentConfig, model_dir: str):
        super().__init__()
        text = gymnasium.spaces.Text(max_length=100)
        self.environment(observation_space=text, action_space=text)
        self.env_runners(env_runner_cls=SERLEnvRunner, create_local_env_runner=False)
        self.experiment, self.model_dir, self.start_dir = experiment, model_dir, os.getcwd()
        self.make_policy: Callable[[], Policy] | None = None
        self.make_gateway: Callable[[], Gateway] | None = None


def runner_config(folder: Path) -> RunnerConfig:
    """Eight episodes of at most five steps at a time; there is no policy yet."""
    byte_tokenizer().save_pretrained(folder)
    experiment = ExperimentConfig(
        name="scripted",
        model=ModelSection(path=str(folder)),
        env=EnvSection(name="rollout_helpers:make_provider", max_steps=5),
        rollout=RolloutSection(max_concurrent_episodes=8, temperature=0.9, max_response_length=33),
    )
    return RunnerConfig(experiment, str(folder))


def scripted_policy(model_dir: str) -> ScriptedClient:
    """Rollout 9 of a group never gets an answer, rollout 8 meets a bug, rollout 7 takes its time."""
    delays = {"9": 3600.0, "7": 1.0}

    def respond(session_id: str, index: int) -> str:
        if session_id.endswith("-8"):
            raise ZeroDivisionError("a bug")
        return FORWARD

    return ScriptedClient(
        PromptEncoder.load(model_dir),
        respond,
        delay=lambda session_id: delays.get(session_id[-1], 0.01),
    )

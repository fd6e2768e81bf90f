"""Every mode of the paper on embedded games: real engine, runners, learner, broadcasts.

All modes share one deployment and its env runners. Each begins with the policy as it ships, published as the
next version, and plays, updates and publishes; one of them twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from learner_helpers import local_learner

from serl.algorithm import SERLConfig
from serl.batch.assemble import build_rows
from serl.config import ExperimentConfig, LoRASection
from serl.config.hindsight import MODES
from serl.learner.learner_group import SERLLearnerGroup
from serl.models.resolve import resolve_model
from serl.rollout.prompt import PromptEncoder
from serl.run.metrics_reference import undescribed
from serl.serving.client import PolicyClient
from serl.serving.names import ServingNames
from serl.types import TrajectoryGroup, staleness
from tools.bench.play import Player, local_cluster, player_on_deployment, with_settings

TWICE = "successful_sample_or_immediate_feedback"
JUDGED = [mode for mode in MODES if mode.startswith("judge_")]
# There is a table of actions for every step, or an observation after it.
ALWAYS_HAS_EVIDENCE = {
    *JUDGED,
    *("immediate_feedback", "next_observation", "future_trajectory"),
    *(mode for mode in MODES if mode.startswith("anchor_")),
}


def experiment(mode: str) -> ExperimentConfig:
    judge = {"base_url": "http://localhost/v1", "model": "asked by nobody"}
    return ExperimentConfig.model_validate(
        {
            "name": "every_mode",
            "model": {"path": "embedded:tiny_alfworld", "max_model_len": 512},
            "env": {
                "args": {"data": "embedded", "max_receptacles": 6},
                "max_steps": 6,
                "invalid_action_penalty": 0.3,
            },
            "rollout": {"max_prompt_length": 448, "max_response_length": 32, "num_cpus_per_env_runner": 0.5},
            "serving": {
                "max_num_seqs": 32,
                "max_num_batched_tokens": 2048,
                "kv_cache_gib": 0.2,
                "num_cpus_per_replica": 0.5,
            },
            "training": {"group_size": 4, "groups_per_batch": 3},
            "hindsight": {
                "mode": mode,
                "judge": judge,
                "lambda_decay_steps": 0,
                "max_context_length": 4096,
            },
            "learner": {"lr": 1e-3, "micro_batch_tokens": 4096},
        }
    )


@dataclass
class House:
    """The deployment with its runners, and the newest version of the weights that it serves."""

    player: Player
    names: ServingNames
    model_dir: Path
    weights_seq_no: int = 0
    evidence_shares: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    model_dir = resolve_model("embedded:tiny_alfworld")
    with (
        local_cluster() as run_dir,
        player_on_deployment(experiment("immediate_feedback"), model_dir, run_dir) as (player, names),
    ):
        yield House(player, names, model_dir)


def judge_texts(groups: list[TrajectoryGroup]) -> dict[str, str | None]:
    return {
        trajectory.trajectory_id: f"The attempt {'succeeded' if trajectory.success else 'lost its way'}."
        for group in groups
        for trajectory in group.trajectories
    }


def weights_of(learners: SERLLearnerGroup) -> torch.Tensor:
    parameters = local_learner(learners).policy.parameters()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


@pytest.mark.parametrize("mode", MODES)
def test_what_a_mode_plays_is_taught_trained_and_published(mode: str, house: House) -> None:
    config = SERLConfig.from_experiment(experiment(mode), str(house.model_dir), str(house.model_dir))
    config.serving_names = house.names
    learners = SERLLearnerGroup(config=config)
    encoder = PromptEncoder.load(str(house.model_dir))
    publish(learners, house)
    shares = []
    for _ in range(2 if mode == TWICE else 1):
        groups = house.player.play_groups(3)
        recorded = frozenset(t.trajectory_id for t in groups[0].trajectories)
        judged = judge_texts(groups) if mode in JUDGED else None
        before = weights_of(learners)
        rows, metrics = build_rows(groups, config.experiment, encoder, house.weights_seq_no, judged, recorded)
        handle = learners.start_update(rows, house.weights_seq_no)
        result = learners.poll_update(handle, timeout_s=0.0)
        assert result is not None
        metrics |= result.metrics
        assert metrics["num_optimizer_steps"] == 1
        assert (weights_of(learners) - before).abs().max() > 1e-5
        assert all(math.isfinite(value) for value in metrics.values())
        assert undescribed(f"learner/{name}" for name in metrics) == []
        # What sampled is what is trained, so the weights of the update before have landed.
        assert metrics["train_inference_mismatch"] < 1e-3
        assert all(staleness(group, house.weights_seq_no) == 0 for group in groups)
        assert len(result.records) == sum(len(t.steps) for t in groups[0].trajectories)
        assert metrics["num_contexts_too_long"] == 0
        shares.append(metrics["evidence_share/any"])
        assert metrics["teacher_num_selected_tokens"] > 0 or not metrics["num_teacher_prompts"]
        publish(learners, house)
    house.evidence_shares[mode] = sum(shares) / len(shares)
    if mode in ALWAYS_HAS_EVIDENCE:
        assert min(shares) > 0.5


def test_conversations_are_sampled_taught_and_trained_on_the_same_ids(house: House) -> None:
    short = experiment("immediate_feedback")
    whole = with_settings(short, rollout={"prompt": "conversation"}, env={"max_steps": 4})
    config = SERLConfig.from_experiment(whole, str(house.model_dir), str(house.model_dir))
    config.serving_names = house.names
    learners = SERLLearnerGroup(config=config)
    publish(learners, house)
    make_policy = functools.partial(PolicyClient, house.names)
    player = Player(whole, house.model_dir, house.model_dir, make_policy)
    try:
        groups = player.play_groups(3)
    finally:
        player.stop()
    pairs = [
        (trajectory.steps[step.continues], step)
        for group in groups
        for trajectory in group.trajectories
        for step in trajectory.steps
        if step.continues is not None
    ]
    assert len(pairs) > 12
    for before, step in pairs:
        known = before.prompt_ids + before.response_ids
        assert step.prompt_ids[: len(known)] == known
        assert step.num_cached_tokens > len(before.prompt_ids) / 2
    encoder = PromptEncoder.load(str(house.model_dir))
    rows, metrics = build_rows(groups, whole, encoder, house.weights_seq_no)
    result = learners.poll_update(learners.start_update(rows, house.weights_seq_no), timeout_s=0.0)
    assert result is not None
    metrics |= result.metrics
    assert metrics["train_inference_mismatch"] < 1e-3
    assert metrics["num_teacher_prompts"] > 0
    assert metrics["saved_token_share"] > 0.5


def test_adapters_are_trained_and_the_replica_samples_with_them_merged(house: House) -> None:
    adapted = with_settings(
        experiment("immediate_feedback"),
        model={"lora": LoRASection(rank=8, alpha=16)},
        loss={"kl_coefficient": 0.05},
        learner={"lr": 1e-2},
    )
    config = SERLConfig.from_experiment(adapted, str(house.model_dir), str(house.model_dir))
    config.serving_names = house.names
    learners = SERLLearnerGroup(config=config)
    publish(learners, house)
    encoder = PromptEncoder.load(str(house.model_dir))
    before = weights_of(learners)
    for number in range(2):
        rows, _ = build_rows(house.player.play_groups(3), adapted, encoder, house.weights_seq_no)
        result = learners.poll_update(learners.start_update(rows, house.weights_seq_no), timeout_s=0.0)
        assert result is not None
        # Of the base first, then of the base with what the first update made of the adapters.
        assert result.metrics["train_inference_mismatch"] < 1e-3
        assert (result.metrics["reference_kl"] > 1e-5) == (number == 1)
        publish(learners, house)
    assert (weights_of(learners) - before).abs().max() > 1e-3


def publish(learners: SERLLearnerGroup, house: House) -> None:
    house.weights_seq_no += 1
    assert learners.publish_weights(house.weights_seq_no).stats.num_replicas == 1


def test_every_mode_was_run(house: House) -> None:
    if set(house.evidence_shares) != set(MODES):
        pytest.skip("only some of the modes were selected, or some failed")
    assert sum(share > 0.0 for share in house.evidence_shares.values()) >= len(ALWAYS_HAS_EVIDENCE)

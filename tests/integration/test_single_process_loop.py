"""The learners' updates against the plain loop in `single_process_loop`, on the same trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from learner_helpers import local_learner
from single_process_loop import SingleProcessLoop

from envs.registry import make_provider
from serl.algorithm import SERLConfig
from serl.batch.assemble import build_rows
from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.learner.learner_group import SERLLearnerGroup
from serl.models.weights import named_weights
from serl.rollout.prompt import PromptEncoder
from serl.types import TrajectoryGroup

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "serl" / "policies" / "tiny_alfworld"
NUM_UPDATES = 3
# Two minibatches an update, a teacher that follows the policy within the three updates, λ on the way to 0.
OVERRIDES = (
    "training.group_size=4",
    "env.max_steps=8",
    "learner.num_learners=0",
    "learner.num_minibatches=2",
    "learner.micro_batch_tokens=600",
    "hindsight.teacher_sync_interval=2",
    "hindsight.lambda_decay_steps=4",
)


def experiment(*overrides: str) -> ExperimentConfig:
    return load_experiment(ROOT / "experiments" / "quickstart.yaml", [*OVERRIDES, *overrides])


def learners(config: ExperimentConfig) -> SERLLearnerGroup:
    return SERLLearnerGroup(config=SERLConfig.from_experiment(config, str(POLICY), str(POLICY)))


def weights_of(group: SERLLearnerGroup) -> dict[str, torch.Tensor]:
    return {name: w.detach().clone() for name, w in named_weights(local_learner(group).policy.model).items()}


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@dataclass
class Trained:
    """After one update: how far loop and learners are apart, how far the learners moved since the start."""

    apart: float
    moved: float
    groups: list[TrajectoryGroup]


def trained_side_by_side(of_loop: ExperimentConfig, of_learners: ExperimentConfig) -> list[Trained]:
    """Three updates of both on what the loop plays, with its own weights of the moment."""
    torch.manual_seed(0)
    loop, group = SingleProcessLoop(of_loop, POLICY), learners(of_learners)
    encoder = PromptEncoder.load(str(POLICY))
    start = weights_of(group)
    tasks = make_provider(of_loop.env.name, of_loop.env.args).task_set("train").tasks
    found = []
    for weights_seq_no in range(NUM_UPDATES):
        groups = loop.play(tasks[2 * weights_seq_no : 2 * weights_seq_no + 2], weights_seq_no)
        loop.update(groups, weights_seq_no)
        rows, _ = build_rows(groups, of_learners, encoder, weights_seq_no)
        group.poll_update(group.start_update(rows, weights_seq_no), timeout_s=0.0)
        expected = {name: w.detach() for name, w in named_weights(loop.policy).items()}
        own = weights_of(group)
        found.append(Trained(largest_difference(own, expected), largest_difference(own, start), groups))
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ("hindsight.enabled=false",),
        (
            "training.filter_groups=false",
            "hindsight.mode=immediate_feedback",
            "hindsight.objective=both",
            "hindsight.distill.coefficient=0.5",
            "hindsight.distill.gate=sigmoid",
        ),
        ("hindsight.mode=successful_sample_or_immediate_feedback", "advantage.estimator=gigpo"),
        ("hindsight.baseline=teacher", "hindsight.center=batch"),
    ],
    ids=["grpo", "immediate_feedback_distilled", "success_or_feedback_gigpo", "baseline_teacher_centered"],
)
def test_three_updates_of_the_learners_agree_with_a_plain_single_process_loop(overrides: tuple[str, ...]):
    config = experiment(*overrides)
    found = trained_side_by_side(config, config)
    assert [update.apart for update in found] == pytest.approx([0.0] * NUM_UPDATES, abs=1e-4)
    groups = [group for update in found for group in update.groups]
    assert any(len({t.success for t in group.trajectories}) > 1 for group in groups), "no group had spread"
    assert found[-1].moved > 2e-3, "the weights hardly moved, so their agreement says little"


def test_an_update_that_leaves_the_teacher_out_is_seen_by_that_comparison():
    found = trained_side_by_side(experiment("hindsight.enabled=false"), experiment())
    assert found[0].apart > 2e-4

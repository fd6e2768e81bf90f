from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from learner_helpers import (
    finished_update,
    learner_group,
    local_learner,
    rows_of,
    sampled_groups,
    save_tiny_policy,
    started_update,
)
from ray import cloudpickle

from serl.batch.packing import plan_update
from serl.learner.errors import LearnerError, LearnerRaisedError
from serl.learner.learner_group import SERLLearnerGroup, UpdateHandle, UpdateResult
from serl.learner.publishing import published_weights
from serl.learner.teacher import context_free_rows
from serl.private.rllib import remote_learners
from serl.types import TrajectoryGroup

START_S = 120.0
TEACHER = {
    "enabled": True,
    "mixing_lambda": 0.5,
    "lambda_decay_steps": 0,
    "objective": "both",
    "distill": {"coefficient": 0.5, "divergence": "jsd", "gate": "sigmoid", "route": "failed", "top_k": 40},
}


pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    rewards = [[10.0, 0.0, 0.0], [0.0, 0.0, 0.0], [10.0, 10.0, 0.0], [10.0, 0.0, 10.0]]
    return sampled_groups(model_dir, rewards)


@pytest.fixture(scope="module")
def local(model_dir: Path) -> SERLLearnerGroup:
    return learner_group(model_dir, hindsight=TEACHER)


@pytest.fixture(scope="module")
def two_learners(model_dir: Path, ray_cluster: None) -> Iterator[SERLLearnerGroup]:
    group = learner_group(model_dir, hindsight=TEACHER, learner={"num_learners": 2})
    yield group
    group.shutdown()


def finished(group: SERLLearnerGroup, handle: UpdateHandle) -> dict[str, float]:
    return finished_update(group, handle, START_S).metrics


def gradients(group: SERLLearnerGroup, groups: list[TrajectoryGroup]) -> list[dict[str, Any]]:
    num_learners = max(1, len(group))
    rows = rows_of(group, groups)
    every_row = group._experiment.loss.trains_every_row
    plans = plan_update(
        rows,
        num_learners=num_learners,
        num_minibatches=1,
        num_epochs=1,
        micro_batch_tokens=200,
        seed=(0,),
        train_every_row=every_row,
        context_free_rows=context_free_rows(rows, group._experiment.hindsight, (0,)),
    )
    # What has neither an advantage nor a divergence is nobody's, unless the loss has terms of its own for it.
    trained = range(len(rows)) if every_row else ((rows.advantages != 0.0) | rows.distilled).nonzero()[0]
    assert sum(len(plan.rows) for plan in plans) == len(trained) > len(plans)
    if group.is_local:
        return [local_learner(group).gradients(plans[0], 0)]
    calls = [
        worker.gradients.remote(plan, 0) for worker, plan in zip(remote_learners(group), plans, strict=True)
    ]
    return ray.get(calls, timeout=START_S)


def test_two_sharded_learners_compute_the_gradient_of_one(
    local: SERLLearnerGroup, two_learners: SERLLearnerGroup, groups: list[TrajectoryGroup]
) -> None:
    (expected,) = gradients(local, groups)
    for of_learner in gradients(two_learners, groups):
        assert of_learner.keys() == expected.keys()
        for name, tensor in expected.items():
            error = float((of_learner[name] - tensor).abs().max())
            assert error <= 1e-5 * float(tensor.abs().max()), f"{name}: {error}"


def _kept_between_micro_batches(learner: Any, plan: Any) -> list[set[str]]:
    """Runs in a learner: what its parameters' gradients are when each micro-batch begins."""
    from torch.distributed.tensor import DTensor

    seen: list[set[str]] = []

    def look(*_: Any) -> None:
        parameters = list(learner.policy.parameters())
        kinds = {
            "none" if p.grad is None else "shard" if isinstance(p.grad, DTensor) else "whole"
            for p in parameters
        }
        seen.append(kinds | ({"whole"} if not all(isinstance(p, DTensor) for p in parameters) else set()))

    hook = learner.policy.register_forward_pre_hook(look, prepend=True)
    learner.gradients(plan, 0)
    hook.remove()
    teacher = learner.teacher.parameters()
    return [*seen, {"shard" if isinstance(parameter, DTensor) else "whole" for parameter in teacher}]


def test_gradients_are_sharded_after_each_micro_batch_and_the_teacher_after_scoring(
    two_learners: SERLLearnerGroup, groups: list[TrajectoryGroup]
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    plans = plan_update(
        rows_of(two_learners, groups),
        num_learners=2,
        num_minibatches=1,
        num_epochs=1,
        micro_batch_tokens=200,
        seed=(0,),
        train_every_row=False,
        context_free_rows=[],
    )
    calls = [
        learner.__ray_call__.remote(_kept_between_micro_batches, plan)
        for learner, plan in zip(remote_learners(two_learners), plans, strict=True)
    ]
    for first, *others, teacher in ray.get(calls, timeout=START_S):
        assert first == {"none"}
        assert len(others) >= 2 and all(kinds == {"shard"} for kinds in others)
        assert teacher == {"shard"}


def test_centring_kl_and_entropy_are_over_the_whole_batch_of_two_learners(
    groups: list[TrajectoryGroup], model_dir: Path, tmp_path: Path
) -> None:
    stale = sampled_groups(save_tiny_policy(tmp_path, seed=1), [[10.0, 0.0, 0.0], [0.0, 0.0], [10.0, 0.0]])
    options: dict[str, Any] = {
        "hindsight": TEACHER | {"baseline": "teacher", "center": "batch", "weight_clip": 0.9},
        "loss": {"kl_coefficient": 0.1, "entropy_coefficient": 0.05},
    }
    recorded = frozenset(t.trajectory_id for group in stale for t in group.trajectories)
    one = learner_group(model_dir, **options)
    # The cluster's CPUs are taken by the learners that other tests share.
    two = learner_group(model_dir, learner={"num_learners": 2, "num_cpus_per_learner": 0.0}, **options)
    try:
        batch = [*stale, *groups[3:]]
        (expected,) = gradients(one, batch)
        for of_learner in gradients(two, batch):
            for name, tensor in expected.items():
                error = float((of_learner[name] - tensor).abs().max())
                assert error <= 2e-5 * float(tensor.abs().max()), f"{name}: {error}"
        results = [updated(group, stale, recorded) for group in (one, two)]
        for name in (
            "teacher_log_ratio_without_context",
            "teacher_context_effect",
            "teacher_weight_mean",
            "loss",
        ):
            assert results[1].metrics[name] == pytest.approx(results[0].metrics[name], rel=1e-4, abs=1e-6)
        assert weights_in(results[1]) == pytest.approx(weights_in(results[0]), rel=1e-4)
    finally:
        two.shutdown()


def test_two_learners_of_adapters_compute_what_one_does(
    groups: list[TrajectoryGroup], model_dir: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "model": {"path": str(model_dir), "lora": {"rank": 4, "alpha": 8}},
        "hindsight": TEACHER,
        "loss": {"kl_coefficient": 0.1},
    }
    one = learner_group(model_dir, **options)
    # The cluster's CPUs are taken by the learners that other tests share.
    two = learner_group(model_dir, learner={"num_learners": 2, "num_cpus_per_learner": 0.0}, **options)
    try:
        expected = finished(one, started_update(one, groups, 0))
        metrics = finished(two, started_update(two, groups, 0))
        for name in ("loss", "grad_norm", "approx_kl", "teacher_weight_mean", "num_trained_tokens"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
        assert "policy/adapter_model.safetensors" in two.save(tmp_path, timeout_s=START_S)
        one.load(tmp_path, timeout_s=START_S)
        (expected_gradient,) = gradients(one, groups)
        assert len(expected_gradient) == 2 * 7 * 2
        for of_learner in gradients(two, groups):
            assert of_learner.keys() == expected_gradient.keys()
            for name, tensor in expected_gradient.items():
                error = float((of_learner[name] - tensor).abs().max())
                assert error <= 1e-5 * float(tensor.abs().max()), f"{name}: {error}"
        expected_merged, *others = [
            dict(weights)
            for weights in (
                [published_weights(local_learner(one).policy, torch.float32, as_adapters=False)]
                + ray.get(
                    [each.__ray_call__.remote(_merged) for each in remote_learners(two)], timeout=START_S
                )
            )
        ]
        for merged in others:
            for name, weight in expected_merged.items():
                torch.testing.assert_close(merged[name], weight, atol=1e-5, rtol=1e-5)
    finally:
        two.shutdown()


def _merged(learner: Any) -> dict[str, torch.Tensor]:
    """Runs in a learner."""
    return dict(published_weights(learner.policy, torch.float32, as_adapters=False))


def updated(group: SERLLearnerGroup, groups: list[TrajectoryGroup], recorded: frozenset[str]) -> UpdateResult:
    return finished_update(group, started_update(group, groups, 0, recorded=recorded), START_S)


def weights_in(result: UpdateResult) -> list[float]:
    return [weight for record in result.records.values() for weight in record.weights if weight is not None]


def test_updates_and_checkpoints_do_not_depend_on_the_number_of_learners(
    local: SERLLearnerGroup,
    two_learners: SERLLearnerGroup,
    groups: list[TrajectoryGroup],
    model_dir: Path,
    tmp_path: Path,
) -> None:
    expected = finished(local, started_update(local, groups, 0))
    metrics = finished(two_learners, started_update(two_learners, groups, 0))
    compared = [
        *(
            "loss",
            "entropy",
            "grad_norm",
            "approx_kl",
            "train_inference_mismatch_on_policy",
            "num_trained_tokens",
        ),
        *("teacher_weight_mean", "teacher_num_selected_tokens", "teacher_abs_log_ratio_mean"),
        *("teacher_positive_weight_min", "teacher_negative_weight_max", "num_teacher_prompts"),
    ]
    for name in compared:
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name

    write = two_learners.start_save(tmp_path, timeout_s=START_S)
    update = started_update(two_learners, groups, 1)
    # The files are written while the learners train.
    assert "policy/model.safetensors" in write()
    alone = learner_group(model_dir, hindsight=TEACHER)
    alone.load(tmp_path, timeout_s=START_S)
    continued = finished(two_learners, update)
    resumed = finished(alone, started_update(alone, groups, 1))
    for name in ("loss", "entropy", "grad_norm", "approx_kl", "teacher_weight_mean"):
        assert resumed[name] == pytest.approx(continued[name], rel=1e-3, abs=1e-5), name

    two_learners.load(tmp_path, timeout_s=START_S)
    again = finished(two_learners, started_update(two_learners, groups, 1))
    assert again["grad_norm"] == pytest.approx(continued["grad_norm"], rel=1e-5)


def test_rllib_gets_no_weights_from_the_learners(two_learners: SERLLearnerGroup) -> None:
    assert two_learners.get_state() == {"learner": {"rl_module": {}}}


def test_a_learner_that_dies_during_an_update_fails_it_and_new_ones_do_it_from_a_checkpoint(
    two_learners: SERLLearnerGroup, groups: list[TrajectoryGroup], model_dir: Path, tmp_path: Path
) -> None:
    two_learners.save(tmp_path, timeout_s=START_S)
    handle = started_update(two_learners, groups, 2)
    former = remote_learners(two_learners)
    heartbeats = [learner.heartbeat.remote() for learner in former]
    assert ray.get(heartbeats, timeout=START_S) == [True, True]
    ray.kill(former[1])
    # The other one may be heard first: it misses the dead one in a collective.
    with pytest.raises(LearnerError, match="learner 1 died in update 2|learner 0 failed in update 2"):
        finished(two_learners, handle)
    two_learners.start()
    assert not set(remote_learners(two_learners)) & set(former)
    two_learners.load(tmp_path, timeout_s=START_S)
    again = finished(two_learners, started_update(two_learners, groups, 2))
    alone = learner_group(model_dir, hindsight=TEACHER)
    alone.load(tmp_path, timeout_s=START_S)
    expected = finished(alone, started_update(alone, groups, 2))
    assert again["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_learners_that_do_not_start_are_a_failure_of_learners_like_any_other(tmp_path: Path) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    group = learner_group(policy, learner={"num_learners": 1, "num_cpus_per_learner": 0.0})
    try:
        with pytest.raises(LearnerError, match="a stop was asked for before the learners had finished"):
            group.start(should_stop=lambda: True)
        (policy / "config.json").unlink()
        with pytest.raises(LearnerRaisedError, match="learner 0 failed in build: "):
            group.start()
        assert remote_learners(group) == []
    finally:
        group.shutdown()
    no_place = {"num_learners": 2, "num_cpus_per_learner": 7.0, "start_timeout_s": 3.0}
    started = time.monotonic()
    with pytest.raises(LearnerError, match=r"of 2 learners finished start within .* = 3 s: are their CPUs"):
        learner_group(save_tiny_policy(tmp_path / "other"), learner=no_place)
    assert time.monotonic() - started < 60.0


def test_an_update_that_takes_too_long_fails_with_its_deadline(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, learner={"num_learners": 1, "update_timeout_s": 0.001})
    try:
        with pytest.raises(LearnerError, match="learner.update_timeout_s = 0.001 s"):
            finished(group, started_update(group, groups, 0))
        ray.kill(remote_learners(group)[0])
        with pytest.raises(LearnerError, match="has not been polled"):
            started_update(group, groups, 1)
        with pytest.raises(LearnerError, match="learner 0 died in copy_state"):
            group.save(model_dir / "nowhere", timeout_s=START_S)
    finally:
        group.shutdown()


def test_weights_are_published_by_a_learner_that_knows_the_deployment_only(model_dir: Path) -> None:
    with pytest.raises(RuntimeError, match="no policy deployment"):
        learner_group(model_dir).publish_weights(1)
    assert torch.get_num_threads() == 1


def test_learners_that_are_forgotten_after_the_end_of_their_cluster_start_no_new_one(
    two_learners: SERLLearnerGroup,
) -> None:
    assert len(two_learners) == 2
    ray.shutdown()
    two_learners.shutdown()
    assert not ray.is_initialized()

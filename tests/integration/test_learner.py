from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learner_helpers import (
    learner_group,
    local_learner,
    reference_logprobs,
    rows_of,
    sampled_groups,
    save_tiny_policy,
    started_update,
    update,
    weights,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from serl.batch.packing import LearnerPlan, plan_update
from serl.batch.rows import TrainingRows
from serl.learner.errors import LearnerError
from serl.learner.learner_group import SERLLearnerGroup
from serl.types import TrainingRow, TrajectoryGroup
from tools.bench.synchronisations import HostSynchronisations

TEACHER = {"enabled": True, "mixing_lambda": 0.5, "lambda_decay_steps": 0}


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    return sampled_groups(model_dir, [[10.0, 0.0, 0.0], [0.0, 0.0, 0.0], [10.0, 10.0, 0.0]])


def gradients(
    group: SERLLearnerGroup, groups: list[TrajectoryGroup], micro_batch_tokens: int = 512
) -> dict[str, Tensor]:
    return local_learner(group).gradients(plan_of(group, groups, micro_batch_tokens), weights_seq_no=0)


def plan_of(group: SERLLearnerGroup, groups: list[TrajectoryGroup], micro_batch_tokens: int) -> LearnerPlan:
    (plan,) = plan_update(
        rows_of(group, groups),
        num_learners=1,
        num_minibatches=1,
        num_epochs=1,
        micro_batch_tokens=micro_batch_tokens,
        seed=(0,),
    )
    return plan


def test_a_micro_batch_makes_the_host_wait_for_its_loss_and_its_metrics_only(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    """On a GPU each wait drains its queue: whether the loss is finite, two sets of metrics, the mismatch;
    and once an optimizer step.
    """
    for micro_batch_tokens in (4096, 128):
        group = learner_group(model_dir, learner={"micro_batch_tokens": micro_batch_tokens})
        plan = plan_of(group, groups, micro_batch_tokens)
        with HostSynchronisations() as counted:
            local_learner(group).update_policy(plan, 0)
        assert counted.number == 4 * len(plan.minibatches[0].micro_batches) + 1


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        error = float((actual[name] - tensor).abs().max())
        assert error <= relative * float(tensor.abs().max()), f"{name}: {error}"


def reference_gradients(model_dir: Path, rows: TrainingRows, num_tokens: int) -> dict[str, Tensor]:
    """d/dθ of −Σ advantage · log π(token) / num_tokens, one plain forward pass a row."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    for row in rows:
        logits = model(torch.tensor([row.prompt_ids + row.response_ids])).logits[0]
        logprobs = logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(row.response_ids)[:, None])
        (-row.advantage * chosen.sum() / num_tokens).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("attention", "layout"), [("sdpa", "tree"), ("eager", "padded")])
def test_the_gradient_on_on_policy_rows_is_that_of_advantage_times_logprob(
    model_dir: Path, groups: list[TrajectoryGroup], attention: str, layout: str
) -> None:
    group = learner_group(model_dir, model={"attention": attention})
    assert local_learner(group).layout() == layout
    rows = rows_of(group, groups)
    num_tokens = sum(len(row.response_ids) for row in rows)
    expected = reference_gradients(model_dir, rows, num_tokens)
    assert_all_close(gradients(group, groups), expected, relative=1e-4)


def test_gradients_of_micro_batches_add_up_to_the_whole(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir)
    whole = gradients(group, groups, micro_batch_tokens=10**6)
    assert_all_close(gradients(group, groups, micro_batch_tokens=150), whole, relative=1e-5)


def test_the_first_adamw_step_moves_every_weight_by_lr_against_its_gradient(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, learner={"lr": 1e-3, "grad_clip": 1e6})
    before, gradient = weights(group), gradients(group, groups)
    metrics = update(group, groups)
    for name, after in weights(group).items():
        expected = before[name] - 1e-3 * gradient[name] / (gradient[name].abs() + 1e-8)
        torch.testing.assert_close(after, expected, atol=2e-5, rtol=0.0)
    norm = torch.cat([tensor.flatten() for tensor in gradient.values()]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_an_update_makes_rewarded_responses_likelier_and_others_less_likely(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = learner_group(model_dir, learner={"lr": 1e-3})
    update(group, groups)
    group.save(tmp_path, timeout_s=60.0)
    change = {True: 0.0, False: 0.0}
    for row in rows_of(group, groups):
        after = reference_logprobs(tmp_path / "policy", row.prompt_ids, row.response_ids)
        if row.advantage:
            change[row.advantage > 0] += sum(after) - sum(row.old_logprobs)
    assert change[True] > 0.1
    assert change[False] < -0.1


def test_zero_variance_groups_change_nothing(model_dir: Path) -> None:
    group = learner_group(model_dir)
    before = weights(group)
    metrics = update(group, sampled_groups(model_dir, [[0.0, 0.0], [10.0, 10.0]]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(group).items())
    assert metrics["num_optimizer_steps"] == 0
    assert metrics["num_rows_with_advantage"] == 0


def test_rows_without_advantage_count_in_the_mean(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = learner_group(model_dir)
    alone, with_idle = gradients(group, groups[:1]), gradients(group, groups[:2])

    def num_tokens(part: list[TrajectoryGroup]) -> int:
        return sum(len(row.response_ids) for row in rows_of(group, part))

    share = num_tokens(groups[:1]) / num_tokens(groups[:2])
    assert_all_close(with_idle, {name: share * tensor for name, tensor in alone.items()}, relative=1e-4)


def test_metrics_of_an_update_on_its_own_rows(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = learner_group(model_dir)
    metrics = update(group, groups)
    assert metrics["train_inference_mismatch_on_policy"] < 1e-5
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["clip_fraction"] == 0.0
    rows = rows_of(group, groups)
    trained = [row for row in rows if row.advantage]
    assert metrics["num_trained_tokens"] == sum(
        len(row.prompt_ids) + len(row.response_ids) for row in trained
    )
    weighted = sum(-row.advantage * len(row.response_ids) for row in rows)
    expected_loss = weighted / sum(len(row.response_ids) for row in rows)
    assert metrics["loss"] == pytest.approx(expected_loss, abs=1e-5)
    again = update(group, groups, weights_seq_no=1)
    assert again["train_inference_mismatch"] > 0.01
    assert "train_inference_mismatch_on_policy" not in again  # nothing was sampled by version 1
    assert again["approx_kl"] > 1e-4


def test_tokens_that_rows_begin_with_together_are_computed_and_counted_once(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER)
    rows = rows_of(group, groups)
    metrics = update(group, groups)
    (plan,) = plan_update(
        rows, num_learners=1, num_minibatches=1, num_epochs=1, micro_batch_tokens=512, seed=(0, 0)
    )
    beginnings = [
        {tuple(ids[:end]) for ids in map(_ids, micro_batch) for end in range(1, len(ids) + 1)}
        for minibatch in plan.minibatches
        for micro_batch in ([plan.rows.row(row) for row in part] for part in minibatch.micro_batches)
    ]
    assert metrics["num_computed_tokens"] == sum(map(len, beginnings))
    saved = metrics["num_trained_tokens"] - metrics["num_computed_tokens"]
    assert metrics["saved_token_share"] == pytest.approx(saved / metrics["num_trained_tokens"])
    assert saved > 100
    assert 0 < metrics["num_computed_teacher_tokens"] < metrics["num_teacher_tokens"] - 100


def _ids(row: TrainingRow) -> list[int]:
    return [*row.prompt_ids, *row.response_ids]


def test_epochs_and_minibatches_are_optimizer_steps(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = learner_group(model_dir, learner={"num_epochs": 2, "num_minibatches": 3})
    metrics = update(group, groups)
    # One of the three minibatches of an epoch is the group whose returns are equal.
    assert metrics["num_optimizer_steps"] == 4
    rows = rows_of(group, groups)
    assert metrics["num_trained_tokens"] == 2 * rows.num_tokens[rows.advantages != 0.0].sum()


def test_the_learning_rate_warms_up(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = learner_group(model_dir, learner={"lr": 1e-3, "lr_warmup_updates": 4})
    assert [update(group, groups, step)["lr"] for step in (0, 1, 3, 9)] == pytest.approx(
        [0.25e-3, 0.5e-3, 1e-3, 1e-3]
    )


def test_the_teacher_scores_action_tokens_under_its_own_prompt(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER)
    metrics = update(group, groups)
    log_ratios = []
    for row in rows_of(group, groups):
        if row.teacher_prompt_ids is not None:
            weighted = reference_logprobs(model_dir, row.teacher_prompt_ids, row.response_ids)
            pairs = zip(weighted, row.old_logprobs, row.action_mask, strict=True)
            log_ratios += [teacher - student for teacher, student, action in pairs if action]
    assert metrics["teacher_num_selected_tokens"] == len(log_ratios)
    assert metrics["teacher_log_ratio_mean"] == pytest.approx(sum(log_ratios) / len(log_ratios), abs=1e-4)
    assert metrics["teacher_abs_log_ratio_mean"] == pytest.approx(
        sum(abs(delta) for delta in log_ratios) / len(log_ratios), abs=1e-4
    )


def test_the_teacher_weights_change_the_gradient_and_lambda_zero_does_not(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    plain = gradients(learner_group(model_dir), groups)
    weighted = gradients(learner_group(model_dir, hindsight=TEACHER), groups)
    unweighted = gradients(learner_group(model_dir, hindsight=TEACHER | {"mixing_lambda": 0.0}), groups)
    assert_all_close(unweighted, plain, relative=0.0)
    assert any((weighted[name] - tensor).abs().max() > 1e-3 for name, tensor in plain.items())


def test_the_teacher_takes_the_policy_over_at_its_sync_interval(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, hindsight=TEACHER | {"teacher_sync_interval": 2})
    learner = local_learner(group)

    def teacher_weights() -> Tensor:
        assert learner.teacher is not None
        return torch.cat([weight.flatten() for weight in learner.teacher.trained_weights().values()]).clone()

    def policy_weights() -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in learner.policy.parameters()]).clone()

    first = policy_weights()
    update(group, groups, 0)
    assert torch.equal(teacher_weights(), first)
    update(group, groups, 1)
    assert torch.equal(teacher_weights(), first)
    third = policy_weights()
    update(group, groups, 2)
    assert torch.equal(teacher_weights(), third)


def test_the_teacher_is_gone_once_lambda_is_zero(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = learner_group(model_dir, hindsight=TEACHER | {"lambda_decay_steps": 2})
    learner = local_learner(group)
    assert update(group, groups, 0)["effective_lambda"] == 0.5
    assert update(group, groups, 1)["effective_lambda"] == 0.25
    assert learner.teacher is not None
    metrics = update(group, groups, 2)
    assert learner.teacher is None
    assert metrics["effective_lambda"] == 0.0
    assert not any(name.startswith("teacher_") for name in metrics)


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir)
    before = weights(group)
    broken = sampled_groups(model_dir, [[10.0, 0.0]])
    broken[0].trajectories[0].steps[0].old_logprobs[0] = float("nan")
    metrics = update(group, broken)
    assert metrics["num_skipped_optimizer_steps"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(group).items())
    assert update(group, groups)["num_skipped_optimizer_steps"] == 0
    with pytest.raises(RuntimeError, match="in a row"):
        for _ in range(5):
            update(group, broken)


def test_with_an_importance_sampling_cap_stale_rows_are_weighted_instead_of_clipped(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    stale = sampled_groups(model_dir, [[10.0, 0.0]])
    for trajectory in stale[0].trajectories:
        for step in trajectory.steps:
            # The sampler found every token e times likelier than the learner does.
            step.old_logprobs = [logprob + 1.0 for logprob in step.old_logprobs]
    clipped = update(learner_group(model_dir), stale)
    assert clipped["clip_fraction"] > 0.1
    corrected = update(learner_group(model_dir, loss={"truncated_importance_sampling_cap": 2.0}), stale)
    assert corrected["clip_fraction"] == 0.0
    assert corrected["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert corrected["importance_weight_mean"] == pytest.approx(0.3679, abs=1e-3)  # exp(-1)
    assert corrected["behaviour_kl"] == pytest.approx(1.0, abs=1e-3)
    assert corrected["train_inference_mismatch"] == pytest.approx(1.0, abs=1e-3)


def test_learners_do_without_attention_that_is_planned_anew_for_every_shape(model_dir: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    learner_group(model_dir)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_bfloat16_computes_in_low_precision_on_float32_weights(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir, model={"path": str(model_dir), "dtype": "bfloat16"})
    metrics = update(group, groups)
    assert 1e-4 < metrics["train_inference_mismatch_on_policy"] < 0.3
    assert all(tensor.dtype == torch.float32 for tensor in weights(group).values())
    published = dict(local_learner(group)._published_weights())
    assert {tensor.dtype for tensor in published.values()} == {torch.bfloat16}


def test_learners_send_each_other_the_precision_that_is_published(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: set[torch.dtype] = set()

    def gather(shard: torch.Tensor) -> torch.Tensor:
        gathered.add(shard.dtype)
        return shard

    monkeypatch.setattr("serl.learner.publishing.whole", gather)
    group = learner_group(model_dir, model={"path": str(model_dir), "dtype": "bfloat16"})
    assert len(list(local_learner(group)._published_weights())) == len(weights(group))
    assert gathered == {torch.bfloat16}


def test_published_weights_have_the_names_of_the_checkpoint(model_dir: Path, tmp_path: Path) -> None:
    untied = save_tiny_policy(tmp_path, tied=False)
    for folder, has_head in ((model_dir, False), (untied, True)):
        names = [name for name, _ in local_learner(learner_group(folder))._published_weights()]
        assert ("lm_head.weight" in names) == has_head
        assert (
            len(names)
            == len(set(names))
            == len(dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters()))
        )


def test_an_update_must_be_polled_to_its_end_before_the_next(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = learner_group(model_dir)
    handle = started_update(group, groups, 0)
    with pytest.raises(LearnerError, match="update 0"):
        started_update(group, groups, 1)
    assert group.poll_update(handle, 1.0) is not None
    with pytest.raises(LearnerError, match="not under way"):
        group.poll_update(handle, 1.0)

"""Teacher weights and λ against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from serl.config import HindsightSection
from serl.hindsight.schedules import effective_lambda
from serl.hindsight.teacher_weights import (
    action_weights,
    log_ratio_parts,
    teacher_weights,
    weighted_advantages,
)

ALL = torch.ones(4, dtype=torch.bool)
ADVANTAGES = torch.tensor([2.0, 2.0, -2.0, -2.0])
STUDENT = torch.full((4,), -1.0)
# Δ = log 1.1, log 3, log 1.1, log 3
TEACHER = STUDENT + torch.tensor([1.1, 3.0, 1.1, 3.0]).log()


def weigh(teacher=TEACHER, selected=ALL, advantages=ADVANTAGES, mixing=1.0, clip=0.5, **options):
    weights, metrics = teacher_weights(advantages, STUDENT, teacher, selected, weight_clip=clip, **options)
    return weighted_advantages(advantages, weights, mixing), metrics


def test_lambda_decays_linearly_on_one_clock():
    assert [effective_lambda(0.5, 50, step) for step in (0, 25, 50, 80)] == [0.5, 0.25, 0.0, 0.0]
    assert effective_lambda(0.5, 0, 10**6) == 0.5
    with pytest.raises(ValueError, match="negative clock"):
        effective_lambda(0.5, 50, -1)


def test_what_the_teacher_likes_weighs_more_if_good_and_less_if_bad():
    mixed, metrics = weigh()
    assert mixed.tolist() == pytest.approx([2.2, 3.0, -2.0 / 1.1, -1.0])
    assert metrics["weight_mean"] == pytest.approx((1.1 + 1.5 + 1 / 1.1 + 0.5) / 4)
    assert metrics["clipped_fraction"] == 0.5


def test_metrics_tell_positive_and_negative_advantages_apart():
    _, metrics = weigh()
    assert metrics["num_selected_tokens"] == 4.0
    assert metrics["positive_weight_mean"] == pytest.approx(1.3)
    assert metrics["positive_weight_min"] == pytest.approx(1.1)
    assert metrics["positive_weight_max"] == pytest.approx(1.5)
    assert metrics["positive_clipped_fraction"] == 0.5
    assert metrics["negative_weight_max"] == pytest.approx(1 / 1.1)
    assert metrics["negative_weight_min"] == pytest.approx(0.5)
    assert metrics["log_ratio_mean"] == pytest.approx((math.log(1.1) + math.log(3.0)) / 2)
    assert metrics["abs_log_ratio_mean"] == metrics["log_ratio_mean"]


def test_lambda_mixes_the_weight_with_one():
    mixed, metrics = weigh(mixing=0.25)
    assert mixed.tolist()[:2] == pytest.approx([2.0 * (0.75 + 0.25 * 1.1), 2.0 * (0.75 + 0.25 * 1.5)])
    untouched, at_zero = weigh(mixing=0.0)
    assert untouched.tolist() == ADVANTAGES.tolist()
    assert at_zero == metrics  # the weights are reported even where λ ignores them


def test_only_selected_tokens_change_and_others_may_hold_anything():
    teacher = torch.tensor([TEACHER[0].item(), math.nan, -math.inf, math.inf])
    selected = torch.tensor([True, False, False, False])
    mixed, metrics = weigh(teacher=teacher, selected=selected)
    assert mixed.tolist() == pytest.approx([2.2, 2.0, -2.0, -2.0])
    assert metrics["weight_mean"] == pytest.approx(1.1)


def test_nothing_selected_means_weight_one():
    mixed, metrics = weigh(selected=torch.zeros(4, dtype=torch.bool), center="step", step_ids=torch.arange(4))
    assert mixed.tolist() == ADVANTAGES.tolist()
    assert (metrics["weight_mean"], metrics["clipped_fraction"], metrics["log_ratio_mean"]) == (1.0, 0.0, 0.0)


def test_a_weight_never_turns_the_sign_and_zero_advantages_stay():
    teacher = torch.tensor([-1000.0, 1000.0, -math.inf, 1000.0])
    mixed, metrics = weigh(teacher=teacher, advantages=torch.tensor([1.0, -1.0, 0.0, 0.0]), clip=0.5)
    assert mixed.tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0])
    assert metrics["weight_mean"] == pytest.approx((0.5 + 0.5 + 1.0 + 1.0) / 4)


def test_a_weight_clip_of_zero_makes_every_weight_one():
    mixed, metrics = weigh(clip=0.0)
    assert mixed.tolist() == ADVANTAGES.tolist()
    assert (metrics["weight_mean"], metrics["clipped_fraction"]) == (1.0, 1.0)


def test_centring_over_the_batch_and_over_steps():
    teacher = STUDENT + torch.tensor([0.1, 0.3, -0.5, -0.7])
    by_batch, metrics = weigh(teacher=teacher, center="batch", clip=0.9)  # mean −0.2
    log_weights = [0.3, 0.5, 0.3, 0.5]
    assert (by_batch / ADVANTAGES).log().tolist() == pytest.approx(log_weights, abs=1e-6)
    assert metrics["log_ratio_mean"] == pytest.approx(-0.2)  # as the teacher gave it, before centring
    by_step, _ = weigh(teacher=teacher, center="step", step_ids=torch.tensor([1, 1, 3, 3]), clip=0.9)
    assert (by_step / ADVANTAGES).log().tolist() == pytest.approx([-0.1, 0.1, -0.1, 0.1], abs=1e-6)


def test_the_mean_is_that_of_the_selected_tokens():
    teacher = STUDENT + torch.tensor([0.1, 0.3, 50.0, 50.0])
    selected = torch.tensor([True, True, False, False])
    mixed, _ = weigh(teacher=teacher, selected=selected, center="batch", clip=0.9)
    assert mixed.tolist() == pytest.approx([2 * math.exp(-0.1), 2 * math.exp(0.1), -2.0, -2.0])


def test_the_teacher_baseline_leaves_the_context_effect_alone():
    without = STUDENT + torch.tensor([0.4, 0.4, 0.4, 0.4])
    teacher = without + torch.tensor([0.1, 0.1, -0.1, -0.1])
    mixed, metrics = weigh(teacher=teacher, baseline="teacher", teacher_logprobs_without_context=without)
    assert (mixed / ADVANTAGES).log().tolist() == pytest.approx([0.1] * 4, abs=1e-6)
    assert metrics["log_ratio_mean"] == pytest.approx(0.0, abs=1e-6)
    against_student, metrics = weigh(teacher=teacher, teacher_logprobs_without_context=without)
    assert (against_student / ADVANTAGES).log().tolist()[0] == pytest.approx(math.log(1.5))  # clipped
    assert metrics["log_ratio_mean"] == pytest.approx(0.4)
    effects, log_ratios_without_context = log_ratio_parts(STUDENT, teacher, without)
    assert effects.tolist() == pytest.approx([0.1, 0.1, -0.1, -0.1])
    assert log_ratios_without_context.tolist() == pytest.approx([0.4] * 4)


def test_shuffling_moves_every_weight_to_another_selected_token():
    size = 50
    advantages = torch.ones(size)
    teacher = torch.linspace(-0.4, 0.4, size)
    selected = torch.arange(size) % 5 != 0

    def run(seed: int | None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return teacher_weights(
            advantages, torch.zeros(size), teacher, selected, weight_clip=0.9, shuffle=generator
        )[0]

    plain, shuffled = run(None), run(7)
    assert torch.equal(shuffled[~selected], advantages[~selected])
    assert torch.equal(shuffled[selected].sort().values, plain[selected].sort().values)
    assert (shuffled[selected] != plain[selected]).all()
    assert torch.equal(shuffled, run(7))
    assert not torch.equal(shuffled, run(8))


def test_parts_of_a_batch_are_centred_and_shuffled_as_the_whole():
    teacher = torch.linspace(-0.4, 0.4, 10)

    def weights_of(part: slice, **options) -> list[float]:
        own = teacher[part]

        def gather(values: torch.Tensor) -> tuple[torch.Tensor, int]:
            """The whole batch: of log-ratios before they are centred, or of weights before they are moved."""
            assert values.numel() == own.numel()
            everywhere = teacher if torch.equal(values, own) else teacher.exp()
            return everywhere, part.start

        generator = torch.Generator().manual_seed(3) if options.pop("shuffled", False) else None
        every = torch.ones(own.numel(), dtype=torch.bool)
        return teacher_weights(
            *(torch.ones_like(own), torch.zeros_like(own), own, every),
            weight_clip=0.9,
            shuffle=generator,
            gather=gather,
            **options,
        )[0].tolist()

    for options in ({"center": "batch"}, {"shuffled": True}):
        whole = weights_of(slice(0, 10), **options)
        parts = weights_of(slice(0, 7), **options) + weights_of(slice(7, 10), **options)
        assert parts == pytest.approx(whole)
    assert sorted(whole) == pytest.approx(sorted(teacher.exp().tolist()))


def test_shapes_other_than_flat_are_kept():
    shape = (2, 2)
    weights, _ = teacher_weights(
        ADVANTAGES.view(shape),
        STUDENT.view(shape),
        TEACHER.view(shape),
        ALL.view(shape),
        weight_clip=0.5,
        center="step",
        step_ids=torch.tensor([[0, 0], [1, 1]]),
    )
    assert weights.shape == shape


def test_the_probability_of_an_action_weighs_every_token_of_its_step():
    # Steps of three, two, two and one tokens: a thought before the action, A < 0, no action, A = 0.
    step_ids = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    selected = torch.tensor([False, True, True, True, True, False, False, True])
    advantages = torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0, 1.0, 1.0, 0.0])
    teacher = torch.tensor([0.0, 0.5, 0.5, 0.8, 0.25, 0.0, 0.0, 0.9]).log()
    weights, metrics = action_weights(advantages, teacher, selected, step_ids, weight_clip=0.8)
    # p = 0.5 · 0.5 and 0.8 · 0.25; 1 + 0.8 · (2 p − 1) and 1 − 0.8 · (2 p − 1)
    assert weights.tolist() == pytest.approx([0.6, 0.6, 0.6, 1.48, 1.48, 1.0, 1.0, 1.0])
    assert metrics["num_selected_tokens"] == 5.0
    assert metrics["weight_mean"] == pytest.approx((3 * 0.6 + 2 * 1.48) / 5)
    assert metrics["positive_weight_max"] == pytest.approx(0.6)
    assert metrics["action_probability_mean"] == pytest.approx((3 * 0.25 + 2 * 0.2) / 5)
    assert metrics["clipped_fraction"] == 0.0


def test_an_action_that_the_teacher_would_always_or_never_take_reaches_the_bounds():
    advantages, steps = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.arange(4)
    teacher = torch.tensor([0.0, -500.0, 0.0, -500.0])
    weights, _ = action_weights(advantages, teacher, ALL, steps, weight_clip=0.5)
    assert weights.tolist() == [1.5, 0.5, 0.5, 1.5]


def test_nothing_is_weighed_where_nothing_is_selected():
    for size in (0, 2):
        nothing = torch.zeros(size)
        steps = torch.zeros(size, dtype=torch.long)
        weights, metrics = action_weights(nothing, nothing, nothing.bool(), steps, weight_clip=0.5)
        assert weights.tolist() == [1.0] * size
        assert metrics["num_selected_tokens"] == 0.0 and metrics["weight_mean"] == 1.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baseline": "teacher"}, 'hindsight.baseline = "teacher" contradicts hindsight.weight'),
        ({"center": "batch"}, 'hindsight.center = "batch" contradicts'),
        ({"shuffle": True}, "hindsight.shuffle = true contradicts"),
    ],
)
def test_what_shapes_a_log_ratio_is_refused_where_there_is_none(keys, message):
    HindsightSection.model_validate(keys)
    with pytest.raises(ValueError, match=message):
        HindsightSection.model_validate(keys | {"weight": "action_probability"})


def test_missing_companions_are_named():
    with pytest.raises(ValueError, match="teacher_logprobs_without_context"):
        weigh(baseline="teacher")
    with pytest.raises(ValueError, match="step_ids"):
        weigh(center="step")
    with pytest.raises(ValueError, match="unknown center"):
        weigh(center="median")
    with pytest.raises(ValueError, match="baseline 'judge'"):
        weigh(baseline="judge")

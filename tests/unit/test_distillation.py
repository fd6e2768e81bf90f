"""Divergences, gates and the distillation loss against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from serl.config import HindsightSection
from serl.config.distill import Divergence
from serl.hindsight.distillation import TopTokens, distill_loss, divergences, gates, top_tokens
from serl.hindsight.schedules import distill_coefficient, has_teacher_copy, teacher_lambda, teaches
from serl.learner.token_scores import in_pieces

KINDS: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jsd")
TEACHER = torch.tensor([[0.5, 0.25, 0.25]]).log()
STUDENT = torch.tensor([[0.25, 0.25, 0.5]]).log()


def test_divergences_of_three_tokens_by_hand() -> None:
    teacher = top_tokens(TEACHER, 3, temperature=1.0)
    # 0.5 log 2 + 0.25 log 1 - 0.25 log 2, the same the other way round; the mixture is 3/8, 1/4, 3/8.
    half = 0.5 * (0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3))
    expected = {"forward_kl": 0.25 * math.log(2), "reverse_kl": 0.25 * math.log(2), "jsd": 2 * half}
    for kind in KINDS:
        assert divergences(STUDENT, teacher, 1.0, kind).item() == pytest.approx(expected[kind], abs=1e-6)


def test_the_direction_of_the_divergence_is_the_one_it_is_called_by() -> None:
    teacher = top_tokens(torch.tensor([[0.8, 0.1, 0.1]]).log(), 3, temperature=1.0)
    uniform = torch.zeros(1, 3)
    forward = 0.8 * math.log(2.4) + 0.2 * math.log(0.3)
    reverse = (math.log(1 / 2.4) + 2 * math.log(1 / 0.3)) / 3
    assert divergences(uniform, teacher, 1.0, "forward_kl").item() == pytest.approx(forward, abs=1e-6)
    assert divergences(uniform, teacher, 1.0, "reverse_kl").item() == pytest.approx(reverse, abs=1e-6)


def test_tokens_beyond_the_likeliest_are_compared_as_one() -> None:
    teacher = top_tokens(TEACHER, 1, temperature=1.0)
    assert teacher.ids.tolist() == [[0]]
    # 0.5 and a rest of 0.5 against 0.25 and a rest of 0.75.
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert divergences(STUDENT, teacher, 1.0, "forward_kl").item() == pytest.approx(expected, abs=1e-6)


def test_both_distributions_are_taken_at_the_sampling_temperature() -> None:
    teacher = top_tokens(TEACHER, 3, temperature=0.5)
    assert teacher.logprobs.exp()[0, 0].item() == pytest.approx(0.25 / 0.375)
    assert divergences(TEACHER, teacher, 0.5, "forward_kl").item() == pytest.approx(0.0, abs=1e-6)


def test_a_student_that_agrees_has_neither_divergence_nor_gradient() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for kind in KINDS:
        for k in (3, 9):
            own = divergences(logits, top_tokens(logits.detach(), k, 0.7), 0.7, kind)
            (gradient,) = torch.autograd.grad(own.sum(), logits)
            assert own.abs().max() < 1e-6 and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [3, 7])
def test_gradients_agree_with_finite_differences(kind: Divergence, k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 7, generator=generator).requires_grad_()
    teacher = top_tokens(torch.randn(2, 7, generator=generator), k, 1.0)

    def loss(values: Tensor) -> Tensor:
        return divergences(values, teacher, 1.0, kind).sum()

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert (gradient - _finite_differences(loss, logits.detach())).abs().max() < 2e-3
    assert gradient.abs().max() > 0.05


def _finite_differences(loss: Callable[[Tensor], Tensor], at: Tensor, step: float = 5e-3) -> Tensor:
    differences = torch.zeros_like(at)
    for index in range(at.numel()):
        moved = torch.zeros_like(at).flatten()
        moved[index] = step
        moved = moved.view_as(at)
        differences.view(-1)[index] = (loss(at + moved) - loss(at - moved)) / (2 * step)
    return differences


def test_pieces_give_what_the_whole_gives() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, of_teacher = torch.randn(2, 11, 5, generator=generator)
    logits.requires_grad_()

    def apart(logits: Tensor, *teacher: Tensor) -> tuple[Tensor]:
        return (divergences(logits, TopTokens(*teacher), 1.0, "jsd"),)

    def computed(size: int) -> tuple[TopTokens, Tensor, Tensor]:
        top = partial(top_tokens, k=3, temperature=1.0)
        teacher = TopTokens(*in_pieces(top, of_teacher, max_piece_elements=size))
        (own,) = in_pieces(apart, logits, *teacher, max_piece_elements=size)
        return teacher, own, torch.autograd.grad(own.sum(), logits)[0]

    teacher, own, gradient = computed(10**6)
    teacher_again, own_again, gradient_again = computed(15)
    assert teacher.ids.equal(teacher_again.ids) and teacher.logprobs.equal(teacher_again.logprobs)
    assert own.equal(own_again) and gradient.allclose(gradient_again, atol=1e-7)


def test_a_gate_opens_with_the_log_ratio() -> None:
    log_ratios = torch.tensor([0.0, math.log(3.0), -math.log(3.0)])
    assert gates(log_ratios, "none", 2.0).tolist() == [1.0, 1.0, 1.0]
    assert gates(log_ratios, "sigmoid", 1.0).tolist() == pytest.approx([0.5, 0.75, 0.25])
    assert gates(log_ratios, "sigmoid", 2.0).tolist() == pytest.approx([0.5, 0.9, 0.1])


def test_the_loss_is_a_mean_over_the_tokens_of_the_whole_minibatch() -> None:
    own, opened = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5])
    loss, metrics = distill_loss(own, opened, coefficient=0.2, num_tokens=10)
    assert loss.item() == pytest.approx(0.2 * 2.5 / 10)
    assert {name: value.item() for name, value in metrics.items()} == {
        "distill_divergence": 4.0,
        "distill_gate": 1.5,
    }


def test_an_objective_decides_which_of_the_two_clocks_runs() -> None:
    def clocks(**settings: object) -> tuple[float, float]:
        section = HindsightSection.model_validate({"mixing_lambda": 0.5, "lambda_decay_steps": 0} | settings)
        return teacher_lambda(section, 10), distill_coefficient(section, 10)

    decaying = {"coefficient": 0.4, "coefficient_decay_steps": 40}
    assert clocks() == (0.5, 0.0)
    assert clocks(objective="distill", distill=decaying) == (0.0, pytest.approx(0.3))
    assert clocks(objective="both", distill=decaying) == (0.5, pytest.approx(0.3))
    assert clocks(objective="both", enabled=False) == (0.0, 0.0)


def test_a_teacher_is_needed_for_as_long_as_either_counts() -> None:
    section = HindsightSection.model_validate(
        {
            "objective": "both",
            "lambda_decay_steps": 5,
            "distill": {"coefficient": 1.0, "coefficient_decay_steps": 8},
        }
    )
    assert [teaches(section, update) for update in (0, 5, 7, 8)] == [True, True, True, False]
    assert has_teacher_copy(section)
    assert not has_teacher_copy(section.model_copy(update={"teacher": "live"}))

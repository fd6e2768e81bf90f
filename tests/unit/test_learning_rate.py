"""The learning rate of each update, against numbers computed by hand."""

from __future__ import annotations

import pytest

from serl.config import LearnerSection
from serl.learner.optimizer import learning_rate


def rates(num_updates: int, steps: tuple[int, ...], **settings: object) -> list[float]:
    section = LearnerSection.model_validate({"lr": 1.0, **settings})
    return [learning_rate(section, step, num_updates) for step in steps]


def test_a_constant_learning_rate_stays_after_its_warmup() -> None:
    assert rates(10, (0, 9), lr_schedule="constant") == [1.0, 1.0]
    assert rates(10, (0, 1, 3, 9), lr_warmup_updates=4) == [0.25, 0.5, 1.0, 1.0]


def test_a_linear_learning_rate_falls_by_equal_amounts_and_never_below_zero() -> None:
    assert rates(4, (0, 1, 2, 3), lr_schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(4, (4, 5), lr_schedule="linear") == [0.0, 0.0]


def test_a_linear_learning_rate_falls_from_where_the_warmup_ended() -> None:
    found = rates(6, (0, 1, 2, 4, 5), lr_schedule="linear", lr_warmup_updates=2)
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.25])


def test_a_warmup_longer_than_the_run_only_rises() -> None:
    assert rates(2, (0, 1), lr_schedule="linear", lr_warmup_updates=4) == [0.25, 0.5]

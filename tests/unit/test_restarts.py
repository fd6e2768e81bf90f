from __future__ import annotations

import pytest

from serl.learner.learner_group import LearnerError
from serl.run.restarts import WINDOW_S, RestartBudget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_learners_are_replaced_so_often_within_an_hour_and_no_more() -> None:
    clock = Clock()
    budget = RestartBudget(2, clock)
    assert budget.spend(LearnerError("learner 0 died in update 3"), 3) == "restart 1 of 2 within an hour"
    clock.now = WINDOW_S
    assert budget.spend(LearnerError("learner 1 died in update 3"), 3) == "restart 2 of 2 within an hour"
    with pytest.raises(LearnerError, match="learner 0 died in update 9; .* 2 times .*max_restarts = 2"):
        budget.spend(LearnerError("learner 0 died in update 9"), 9)
    clock.now = WINDOW_S + 1.0
    assert budget.spend(LearnerError("learner 0 died in update 9"), 9) == "restart 2 of 2 within an hour"


def test_an_update_that_fails_twice_in_the_same_way_would_fail_again() -> None:
    budget = RestartBudget(9)
    budget.spend(LearnerError("learner 0 failed in update 3: no such option"), 3)
    budget.spend(LearnerError("learner 0 failed in update 4: no such option"), 4)
    with pytest.raises(LearnerError, match="so it did before"):
        budget.spend(LearnerError("learner 0 failed in update 4: no such option"), 4)


def test_without_restarts_the_first_failure_ends_the_run() -> None:
    with pytest.raises(LearnerError, match="replaced 0 times"):
        RestartBudget(0).spend(LearnerError("learner 0 died"), 0)

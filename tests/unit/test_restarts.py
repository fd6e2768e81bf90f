from __future__ import annotations

import pytest

from serl.learner.errors import LearnerError, LearnerRaisedError
from serl.run.restarts import WINDOW_S, RestartBudget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_learners_are_replaced_so_often_within_an_hour_and_no_more() -> None:
    clock = Clock()
    budget = RestartBudget(2, clock)
    assert budget.spend(LearnerError("learner 0 died in update 3"), 3) == "restart 1 of 2"
    clock.now = WINDOW_S
    assert budget.spend(LearnerError("learner 1 died in update 3"), 3) == "restart 2 of 2"
    with pytest.raises(LearnerError, match="learner 0 died in update 9; .* 2 times .*max_restarts = 2"):
        budget.spend(LearnerError("learner 0 died in update 9"), 9)
    clock.now = WINDOW_S + 1.0
    assert budget.spend(LearnerError("learner 0 died in update 9"), 9) == "restart 2 of 2"


def test_an_update_in_which_learners_raise_the_same_twice_would_fail_again() -> None:
    budget = RestartBudget(9)
    budget.spend(LearnerRaisedError("learner 0 failed in update 3: no such option"), 3)
    budget.spend(LearnerRaisedError("learner 0 failed in update 4: no such option"), 4)
    with pytest.raises(LearnerError, match="so it did before"):
        budget.spend(LearnerRaisedError("learner 0 failed in update 4: no such option"), 4)


def test_a_learner_that_is_killed_again_in_the_same_update_is_replaced_again() -> None:
    budget = RestartBudget(3)
    for number in (1, 2, 3):
        spent = budget.spend(LearnerError("learner 0 died in update 4"), 4)
        assert spent == f"restart {number} of 3"
    with pytest.raises(LearnerError, match="replaced 3 times"):
        budget.spend(LearnerError("learner 0 died in update 4"), 4)


def test_an_hour_gives_no_restart_back_to_a_run_that_gets_no_further() -> None:
    clock = Clock()
    budget = RestartBudget(1, clock)
    budget.spend(LearnerError("learner 0 died in update 4"), 4)
    clock.now = WINDOW_S + 1.0
    for update in (3, 4):  # what came after the checkpoint is done again
        with pytest.raises(LearnerError, match="without a new update"):
            budget.spend(LearnerError(f"learner 0 died in update {update}"), update)
    assert budget.spend(LearnerError("learner 0 died in update 5"), 5) == "restart 1 of 1"


def test_without_restarts_the_first_failure_ends_the_run() -> None:
    with pytest.raises(LearnerError, match="replaced 0 times"):
        RestartBudget(0).spend(LearnerError("learner 0 died"), 0)

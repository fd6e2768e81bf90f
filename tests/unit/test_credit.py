from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from trajectories import make_step, make_trajectory

from envs.base import MeasuringProvider, TextEnv
from envs.example import GuessEnv, GuessProvider
from serl.hindsight.credit import IDLE, REST, ScoredActions, group_wins
from serl.rollout.progress import ActionKind, JudgedStep, ReplayError, judged_steps
from serl.run.credit import CreditMeter, teacher_score
from serl.types import Step, Task, TeacherRecord

Action = tuple[float, ActionKind, float, int]


class RememberingEnv(GuessEnv):
    """The example, which also remembers the best of the guesses."""

    def reset(self, *, seed=None, options=None):
        self.distance = 5
        return super().reset(seed=seed, options=options)

    def step(self, action):
        answer = super().step(action)
        if action[-1:].isdigit():
            self.distance = min(self.distance, abs(int(action[-1]) - self.secret))
        return answer


class MeasuredGuesses(GuessProvider):
    def make_env(self):
        return RememberingEnv()

    def progress(self, env: TextEnv) -> float:
        assert isinstance(env, RememberingEnv)
        return -float(env.distance)


def test_of_four_pairs_two_and_a_half_are_won() -> None:
    # 3 beats 2 and 1; 1 loses to 2 and ties with 1.
    actions = ScoredActions.of(
        [(3.0, "progress", 1.0, 0), (1.0, "progress", 1.0, 0), (2.0, "idle", 1.0, 0), (1.0, "idle", 1.0, 0)]
    )
    auc = actions.auc(IDLE)
    assert (auc.value, auc.num_progress, auc.num_others) == (2.5 / 4, 2, 2)
    # There is but one group to draw.
    assert (auc.low, auc.high) == (2.5 / 4, 2.5 / 4)


def test_the_sign_of_the_advantage_and_the_kinds_choose_what_is_compared() -> None:
    actions = ScoredActions.of(
        [
            (2.0, "progress", 1.0, 0),
            (0.0, "progress", -1.0, 0),
            (1.0, "idle", 1.0, 0),
            (1.0, "idle", -1.0, 1),
            (3.0, "inadmissible", -1.0, 1),
        ]
    )
    assert actions.auc(IDLE, sign=1).value == 1.0
    assert actions.auc(IDLE, sign=-1).value == 0.0
    assert actions.auc(IDLE).value == 0.5
    # Of six pairs 2 wins against both idle ones and loses to the inadmissible one, 0 wins none.
    assert actions.auc(REST).value == pytest.approx(2 / 6)
    assert (actions.auc(REST, sign=1).num_progress, actions.auc(REST, sign=1).num_others) == (1, 1)


def test_without_a_pair_there_is_no_auc() -> None:
    alone: list[list[Action]] = [[], [(1.0, "progress", 1.0, 0)], [(1.0, "idle", 1.0, 0)]]
    for actions in alone:
        auc = ScoredActions.of(actions).auc(REST)
        assert math.isnan(auc.value) and math.isnan(auc.low) and math.isnan(auc.high)


def test_wins_are_counted_by_the_groups_of_both_sides() -> None:
    wins = group_wins(np.array([2.0, 0.0]), np.array([0, 1]), np.array([1.0, 2.0]), np.array([0, 1]))
    assert wins.tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_an_interval_is_that_of_whole_groups() -> None:
    # Each group on its own is perfect (AUC 1), both together have 3 of 4 pairs: 2 and 4 beat 1, 4 beats 3.
    one: list[Action] = [(2.0, "progress", 1.0, 0), (1.0, "idle", 1.0, 0)]
    other: list[Action] = [(4.0, "progress", 1.0, 1), (3.0, "idle", 1.0, 1)]
    auc = ScoredActions.of([*one, *other]).auc(IDLE)
    assert (auc.value, auc.low, auc.high) == (0.75, 0.75, 1.0)
    # Taken as one group there is nothing to draw, and the interval is the value.
    together = ScoredActions.of([(score, kind, a, 0) for score, kind, a, _ in (*one, *other)]).auc(IDLE)
    assert (together.low, together.high) == (0.75, 0.75)


def guess(number: int, answer: str | None) -> Step:
    return make_step(response_text=f"<action>guess {number}</action>", next_observation=answer)


# Of task "3"; the second guess is no better than the first.
RESPONSES = ["<action>guess 5</action>", "<action>guess 1</action>", "guess 3"]
ANSWERS = ["Too high.", "Too low.", "Right!"]


def test_an_action_made_progress_idled_or_was_inadmissible() -> None:
    assert isinstance(MeasuredGuesses(), MeasuringProvider) and not isinstance(
        GuessProvider(), MeasuringProvider
    )
    assert judged_steps(MeasuredGuesses(), "3", RESPONSES, ANSWERS) == [
        JudgedStep("progress", "Three guesses."),
        JudgedStep("idle", "Too high."),
        # What states no action is inadmissible, although the environment took it.
        JudgedStep("inadmissible", "Too low."),
    ]


def test_an_episode_that_goes_another_way_is_not_judged() -> None:
    provider = MeasuredGuesses()
    with pytest.raises(ReplayError, match="answered step 2 otherwise"):
        judged_steps(provider, "3", RESPONSES[:2], ["Too high.", "Too high."])
    with pytest.raises(ReplayError, match="no task '9'"):
        judged_steps(provider, "9", RESPONSES[:1], ANSWERS[:1])
    with pytest.raises(ReplayError, match="ended before step 2"):
        judged_steps(provider, "3", ["<action>guess 3</action>"] * 2, ["Right!", "Right!"])
    assert len(judged_steps(provider, "3", RESPONSES[:2], [None, None])) == 2


def record(log_ratios: list[float | None], advantage: float) -> TeacherRecord:
    nothing: list[float | None] = [None] * len(log_ratios)
    return TeacherRecord(advantage, nothing, "told", nothing, log_ratios, None, None)


def test_a_run_logs_the_credit_of_what_it_recorded() -> None:
    steps = [guess(5, "Too high."), guess(1, "Too low."), guess(2, "Too low.")]
    steps = [
        replace(step, old_logprobs=logprobs, action_mask=[True] * len(logprobs))
        for step, logprobs in zip(steps, ([-0.5, 0.0, -0.5], [-1.0], [-1.0]), strict=True)
    ]
    trajectory = make_trajectory(steps, task=Task("3"))
    # Progress, idle, progress; the third has no evidence.
    records = {
        ("g-0", 0): record([0.25, None, 0.25], 1.0),
        ("g-0", 1): record([0.4], 1.0),
        ("g-0", 2): record([None], -1.0),
    }
    metrics = CreditMeter(MeasuredGuesses(), "log_ratio").metrics([trajectory], records)
    assert (
        metrics["credit/auc_idle"] == metrics["credit/auc_idle_positive"] == metrics["credit/auc_rest"] == 1.0
    )
    # The student found both equally likely.
    assert metrics["credit/student_auc_idle"] == 0.5
    counts = {name: metrics[f"credit/num_{name}"] for name in ("progress", "idle", "inadmissible")}
    assert counts == {"progress": 1.0, "idle": 1.0, "inadmissible": 0.0}


def test_the_score_of_an_action_is_its_log_ratio_or_its_log_prob_by_the_teacher() -> None:
    step = replace(guess(5, None), old_logprobs=[-1.0, -2.0, -4.0])
    scored = record([None, 0.5, -0.25], 1.0)
    assert teacher_score(scored, step, "log_ratio") == 0.25
    assert teacher_score(scored, step, "action_probability") == -5.75
    assert teacher_score(record([None] * 3, 1.0), step, "log_ratio") is None


def test_what_cannot_be_played_again_is_counted() -> None:
    trajectory = make_trajectory([guess(5, "Too low.")], task=Task("3"))
    metrics = CreditMeter(MeasuredGuesses(), "log_ratio").metrics(
        [trajectory], {("g-0", 0): record([1.0], 1.0)}
    )
    assert metrics["credit/trajectories_not_judged"] == 1.0
    assert metrics["credit/num_progress"] == 0.0 and math.isnan(metrics["credit/auc_idle"])

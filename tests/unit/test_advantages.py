"""Advantage estimators against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from trajectories import make_step, make_trajectory

from envs.base import Task
from serl.batch.advantages import StepRows, estimate_advantages, needs_batch
from serl.batch.step_rows import cluster_statistics, discounted_returns
from serl.config import AdvantageSection
from serl.config.registry import ESTIMATORS
from serl.types import Trajectory, TrajectoryGroup

GRPO = {"across": "trajectories"}


def make_rows(
    groups: Sequence[Sequence[tuple[float, int]]],
    anchors: Sequence[str] | None = None,
    step_rewards: Sequence[float] | None = None,
    num_tokens: Sequence[int] | None = None,
) -> StepRows:
    """Rows from ``(reward, number of steps)`` of each trajectory of each group."""
    rewards, group_index, trajectory_index = [], [], []
    num_trajectories = 0
    for group, trajectories in enumerate(groups):
        for reward, length in trajectories:
            rewards += [reward] * length
            group_index += [group] * length
            trajectory_index += [num_trajectories] * length
            num_trajectories += 1
    return StepRows(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        step_rewards=torch.tensor(rewards if step_rewards is None else step_rewards, dtype=torch.float64),
        groups=torch.tensor(group_index),
        trajectories=torch.tensor(trajectory_index),
        num_tokens=torch.tensor([1] * len(rewards) if num_tokens is None else num_tokens),
        anchors=[""] * len(rewards) if anchors is None else anchors,
    )


def estimate(rows: StepRows, estimator: str, **args) -> tuple[list[float], dict[str, float]]:
    values, metrics = estimate_advantages(rows, AdvantageSection(estimator=estimator, args=args))
    return values.tolist(), metrics


def advantages(rows: StepRows, estimator: str, **args) -> list[float]:
    return estimate(rows, estimator, **args)[0]


def test_grpo_across_trajectories_counts_a_long_trajectory_once():
    rows = make_rows([[(1.0, 3), (0.0, 1), (0.0, 1), (0.0, 1)]])  # mean 1/4, sample std 1/2
    assert advantages(rows, "grpo", **GRPO) == pytest.approx([1.5] * 3 + [-0.5] * 3, rel=1e-5)


def test_grpo_across_steps_counts_every_row():
    rows = make_rows([[(1.0, 3), (0.0, 1)]])  # rows 1 1 1 0: mean 3/4, sample std 1/2
    expected = [0.5] * 3 + [-1.5]
    assert advantages(rows, "grpo", across="steps") == pytest.approx(expected, rel=1e-5)


def test_dr_grpo_leaves_the_std_out():
    rows = make_rows([[(10.0, 1), (0.0, 2)]])
    assert advantages(rows, "grpo", across="trajectories", normalize_std=False) == [5.0, -5.0, -5.0]


def test_groups_do_not_mix():
    rows = make_rows([[(1.0, 1), (0.0, 1)], [(30.0, 1), (10.0, 1)]])
    expected = [0.5, -0.5, 10.0, -10.0]
    assert advantages(rows, "grpo", across="trajectories", normalize_std=False) == expected


def test_a_zero_variance_group_teaches_nothing():
    # 0.863765 is no float32: the mean of equal values must not leave a rest for the tiny std to blow up.
    rows = make_rows([[(0.863765, 2), (0.863765, 3), (0.863765, 1)], [(1.0, 1), (0.0, 1)]])
    for across in ("steps", "trajectories"):
        values = advantages(rows, "grpo", across=across)
        assert values[:6] == [0.0] * 6
        assert values[6] > 0


def test_a_group_of_one_value_has_mean_zero_and_std_one():
    rows = make_rows([[(3.0, 2)]])
    assert advantages(rows, "grpo", **GRPO) == pytest.approx([3.0, 3.0], rel=1e-5)
    assert advantages(rows, "rloo", across="trajectories") == [3.0, 3.0]


def test_rloo_is_the_reward_minus_the_mean_of_the_others():
    rows = make_rows([[(9.0, 1), (3.0, 2), (0.0, 1)]])
    expected = [9.0 - 1.5, 3.0 - 4.5, 3.0 - 4.5, 0.0 - 6.0]
    assert advantages(rows, "rloo", across="trajectories") == pytest.approx(expected)
    over_rows = [9.0 - 2.0, 3.0 - 4.0, 3.0 - 4.0, 0.0 - 5.0]
    assert advantages(rows, "rloo", across="steps") == pytest.approx(over_rows)


def test_passk_rewards_only_the_first_row_of_the_best_trajectory():
    rows = make_rows([[(1.0, 2), (4.0, 3), (2.5, 1)], [(2.0, 1), (2.0, 1)], [(7.0, 2)]])
    values = advantages(rows, "grpo_passk", across="trajectories", normalize_std=False)
    assert values == [0, 0, 1.5, 0, 0, 0, 0, 0, 0, 0]
    divided = advantages(rows, "grpo_passk", across="trajectories")
    assert divided[2] == pytest.approx(1.5 / 1.5, rel=1e-5)  # sample std of 1, 4, 2.5


def test_reinforce_pp_whitens_over_tokens():
    rows = make_rows([[(1.0, 1), (0.0, 1)]], num_tokens=[1, 3])  # centred ±1/2 on 1 and 3 tokens
    mean, std = -0.25, math.sqrt((0.75**2 + 3 * 0.25**2) / 3)
    expected = [(0.5 - mean) / std, (-0.5 - mean) / std]
    assert advantages(rows, "reinforce_pp_baseline", across="trajectories") == pytest.approx(expected)


def test_gigpo_adds_what_the_step_did_better_than_others_at_the_same_anchor():
    # Discounted by a half: 3 + 10 / 2 = 8 and 10 in the first trajectory, 2 + 0 and 0 in the second.
    rows = make_rows(
        [[(10.0, 2), (0.0, 2)]],
        anchors=["room", "shelf", "room", "door"],
        step_rewards=[3.0, 10.0, 2.0, 0.0],
    )
    values = advantages(
        rows, "gigpo", across="trajectories", normalize_std=False, gamma=0.5, step_advantage_weight=0.5
    )
    assert values == [5.0 + 0.5 * 3.0, 5.0, -5.0 - 0.5 * 3.0, -5.0]


def test_gigpo_divides_both_parts_by_their_own_std():
    rows = make_rows([[(10.0, 1), (0.0, 1)]], anchors=["room", "room"], step_rewards=[4.0, 2.0])
    values = advantages(rows, "gigpo", across="trajectories")
    assert values == pytest.approx([2 * math.sqrt(0.5), -2 * math.sqrt(0.5)], rel=1e-5)


def test_gigpo_joins_similar_anchors_but_never_those_of_another_group():
    similar = {"across": "trajectories", "normalize_std": False, "anchor_similarity": 0.9}
    anchors = ["You see a mug 1 here.", "You see a mug 2 here."]
    one_group = make_rows([[(0.0, 1), (0.0, 1)]], anchors=anchors, step_rewards=[2.0, 0.0])
    values, metrics = estimate(one_group, "gigpo", **similar)
    assert values == [1.0, -1.0]
    assert (metrics["gigpo_anchor_size_mean"], metrics["gigpo_anchor_alone_share"]) == (2.0, 0.0)
    assert advantages(one_group, "gigpo", **similar | {"anchor_similarity": None}) == [0.0, 0.0]
    two_groups = make_rows([[(0.0, 1), (0.0, 1)]] * 2, anchors=["a", anchors[0], "b", anchors[0]])
    assert advantages(two_groups, "gigpo", **similar) == [0.0] * 4


def test_the_order_of_trajectories_does_not_matter():
    forward = make_rows([[(1.0, 2), (5.0, 1), (2.0, 3)]])
    backward = make_rows([[(2.0, 3), (5.0, 1), (1.0, 2)]])
    for estimator in ("grpo", "rloo"):
        one = advantages(forward, estimator, **GRPO)
        other = advantages(backward, estimator, **GRPO)
        assert one == pytest.approx(other[::-1])


def test_rows_come_from_trajectories_as_the_environment_rewarded_them():
    def trajectory(rollout_index: int, rewards: list[float], total: float) -> Trajectory:
        steps = [make_step(range(i + 1), reward=reward) for i, reward in enumerate(rewards)]
        return make_trajectory(steps, total, rollout_index=rollout_index)

    group = TrajectoryGroup("g", Task("task"), [trajectory(0, [0.0, -1.0, 8.0], 8.0), trajectory(1, [], 0.0)])
    other = TrajectoryGroup("h", Task("task"), [trajectory(2, [2.0], 2.0)])
    rows = StepRows.from_groups([group, other])
    assert rows.rewards.tolist() == [8.0, 8.0, 8.0, 2.0]
    assert rows.step_rewards.tolist() == [0.0, -1.0, 8.0, 2.0]
    assert rows.groups.tolist() == [0, 0, 0, 1]
    assert rows.trajectories.tolist() == [0, 0, 0, 1]
    assert rows.num_tokens.tolist() == [1, 2, 3, 1]
    assert rows.num_steps.tolist() == [3, 3, 3, 1]
    assert rows.first_of_trajectory.tolist() == [True, False, False, True]
    assert discounted_returns(rows, 0.5).tolist() == [1.5, 3.0, 8.0, 2.0]
    assert discounted_returns(rows, 0.0).tolist() == rows.step_rewards.tolist()


def test_a_cluster_has_variance_where_values_that_count_differ():
    values = torch.tensor([0.863765, 0.863765, 0.863765, 1.0, 2.0])
    clusters = torch.tensor([0, 0, 0, 1, 1])
    assert cluster_statistics(values, clusters).has_variance.tolist() == [False] * 3 + [True] * 2
    first_only = torch.tensor([True, False, False, True, False])
    assert not cluster_statistics(values, clusters, first_only).has_variance.any()


@pytest.mark.parametrize("estimator", ESTIMATORS.built_in())
def test_what_an_estimator_gives_a_group_depends_on_others_only_if_it_needs_the_batch(estimator: str):
    groups = [[(1.0, 2), (5.0, 1), (2.0, 3)], [(9.0, 1), (0.0, 2)], [(4.0, 2), (4.0, 1)]]
    alone = [value for group in groups for value in advantages(make_rows([group]), estimator)]
    together = advantages(make_rows(groups), estimator)
    assert (together == pytest.approx(alone)) != needs_batch(AdvantageSection(estimator=estimator))


OWN_ESTIMATOR = """
from typing import Annotated
from pydantic import Field
from serl.batch.advantages import StepRows, register_estimator

@register_estimator("sign")
def sign(rows: StepRows, *, scale: Annotated[float, Field(gt=0.0)], offset: float = 0.0):
    return rows.rewards.sign() * scale + offset, {"sign_scale": scale}
"""


def test_an_estimator_of_ones_own_is_named_by_its_module_and_given_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_estimator.py").write_text(OWN_ESTIMATOR, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    values, metrics = estimate(make_rows([[(5.0, 1), (-2.0, 1)]]), "own_estimator:sign", scale=3)
    assert (values, metrics["sign_scale"]) == ([3.0, -3.0], 3.0)
    assert not needs_batch(AdvantageSection(estimator="own_estimator:sign", args={"scale": 1.0}))


def test_no_advantage_without_a_row():
    with pytest.raises(ValueError, match="at least one step row"):
        estimate(StepRows.from_groups([]), "grpo")

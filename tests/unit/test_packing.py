from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from serl.batch.packing import (
    LearnerPlan,
    Minibatch,
    pack_by_length,
    pack_by_prefix,
    plan_update,
    random_minibatches,
)
from serl.batch.prefix_tree import PrefixTree
from serl.batch.rows import Ragged, TrainingRows
from serl.types import TrainingRow

_unlike = itertools.count(100)


def training_row(
    group: str,
    row: int,
    advantage: float = 1.0,
    prompt: int = 8,
    response: int = 2,
    teacher_prompt: int | None = None,
) -> TrainingRow:
    """No other row begins like it."""
    token = next(_unlike)
    return TrainingRow(
        group_id=group,
        trajectory_id=f"{group}-{row}",
        step_index=0,
        prompt_ids=[token] * prompt,
        response_ids=[2] * response,
        old_logprobs=[-1.0] * response,
        action_mask=[True] * response,
        advantage=advantage,
        weights_seq_no=0,
        teacher_prompt_ids=None if teacher_prompt is None else [token] * teacher_prompt,
    )


def plan(rows: list[TrainingRow], num_learners: int = 1, **options: Any) -> list[LearnerPlan]:
    settings: dict[str, Any] = {"num_minibatches": 1, "num_epochs": 1, "micro_batch_tokens": 40} | options
    return plan_update(TrainingRows.of(rows), num_learners=num_learners, seed=(7, 0), **settings)


def trained_rows(learner: LearnerPlan, minibatch: Minibatch) -> list[str]:
    return [learner.rows.trajectory_ids[row] for part in minibatch.micro_batches for row in part]


def mixed_batch() -> list[TrainingRow]:
    draw = random.Random(0)
    return [
        training_row(
            f"g{group}",
            row,
            advantage=0.0 if group == 2 else 1.0,
            prompt=draw.randint(4, 14),
            teacher_prompt=None if row % 3 == 0 else 18,
        )
        for group in range(5)
        for row in range(6)
    ]


def test_shards_are_balanced_by_tokens_whatever_group_a_row_is_of():
    heavy = [training_row("heavy", row, prompt=28) for row in range(3)]  # 30 tokens each
    light = [training_row("light", row, prompt=8) for row in range(9)]  # 10 tokens each
    plans = plan([*light, *heavy], num_learners=3)
    assert [int(part.rows.num_tokens.sum()) for part in plans] == [60, 60, 60]


@pytest.mark.parametrize("success", [0.3, 0.6, 0.9])
def test_eight_learners_have_loads_within_a_twentieth_of_their_mean(success: float):
    """16 groups of 8 episodes: successes end early, failures after 50 steps; only mixed groups train."""
    draw = random.Random(success)
    rows = []
    for group in range(16):
        won = [draw.random() < success for _ in range(8)]
        for index, is_won in enumerate(won):
            num_steps = draw.randint(4, 30) if is_won else 50
            advantage = (1.0 if is_won else -1.0) if len(set(won)) == 2 else 0.0
            rows += [
                training_row(f"g{group}", index, advantage, prompt=draw.randint(100, 400), response=20)
                for _ in range(num_steps)
            ]
    loads = [int(part.rows.num_tokens.sum()) for part in plan(rows, num_learners=8, micro_batch_tokens=4096)]
    assert max(loads) <= 1.05 * sum(loads) / 8


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(1, 4), (3, 4), (3, 1)])
def test_learners_share_every_minibatch_equally_in_every_epoch(num_epochs: int, num_minibatches: int):
    rows = [training_row(group, row) for group in "abcdefgh" for row in range(6)]
    plans = plan(rows, num_learners=2, num_epochs=num_epochs, num_minibatches=num_minibatches)
    for first, second in zip(*(part.minibatches for part in plans), strict=True):
        assert (
            len(trained_rows(plans[0], first)) == len(trained_rows(plans[1], second)) == 24 // num_minibatches
        )


def test_every_row_with_an_advantage_is_trained_once_an_epoch_and_no_other():
    rows = mixed_batch()
    wanted = sorted(row.trajectory_id for row in rows if row.advantage != 0.0)
    plans = plan(rows, num_learners=2, num_minibatches=4, num_epochs=2)
    assert [len(learner.minibatches) for learner in plans] == [8, 8]
    for epoch in (0, 1):
        rows = [
            trajectory_id
            for learner in plans
            for minibatch in learner.minibatches[4 * epoch : 4 * epoch + 4]
            for trajectory_id in trained_rows(learner, minibatch)
        ]
        assert sorted(rows) == wanted


def test_minibatches_and_denominators_do_not_depend_on_the_number_of_learners():
    rows = mixed_batch()
    (alone,) = plan(rows, num_learners=1, num_minibatches=3)
    several = plan(rows, num_learners=3, num_minibatches=3)
    for index, minibatch in enumerate(alone.minibatches):
        together = [row for learner in several for row in trained_rows(learner, learner.minibatches[index])]
        assert sorted(together) == sorted(trained_rows(alone, minibatch))
        for learner in several:
            other = learner.minibatches[index]
            assert other.num_loss_tokens == minibatch.num_loss_tokens
            assert other.num_rows == minibatch.num_rows
            assert other.num_trained_tokens == minibatch.num_trained_tokens


def test_rows_without_advantage_count_in_the_denominators_only():
    rows = [
        training_row("a", 0),
        training_row("a", 1, advantage=0.0, response=5),
        training_row("a", 2, response=3),
    ]
    (minibatch,) = plan(rows)[0].minibatches
    assert minibatch.num_loss_tokens == 2 + 5 + 3
    assert minibatch.num_rows == 3
    assert minibatch.num_trained_tokens == 2 + 3


def test_a_batch_without_any_advantage_has_no_minibatch():
    (learner,) = plan([training_row("a", 0, advantage=0.0), training_row("b", 0, advantage=0.0)])
    assert len(learner.rows) == 0
    assert learner.minibatches == ()


def test_a_row_without_response_tokens_is_not_trained():
    (learner,) = plan([training_row("a", 0, response=0), training_row("a", 1)])
    assert [row.trajectory_id for row in learner.rows] == ["a-1"]


def test_all_learners_make_the_same_number_of_forward_passes():
    big = [training_row("big", row, teacher_prompt=18) for row in range(9)]
    small = [training_row("small", row) for row in range(2)]
    one, two = plan([*big, *small], num_learners=2, num_minibatches=2)
    # Big rows alone are scored; those of one learner fill one micro-batch of 40 tokens more than the other's.
    sizes = [[len(part.with_context) for part in learner.teacher_micro_batches] for learner in (one, two)]
    assert len(sizes[0]) == len(sizes[1])
    assert sorted(map(sum, sizes)) == [4, 5]
    assert all(size <= 2 for size in sizes[0] + sizes[1])
    assert len(one.micro_batches) == len(two.micro_batches)
    for first, second in zip(one.minibatches, two.minibatches, strict=True):
        assert len(first.micro_batches) == len(second.micro_batches)


def test_only_rows_with_a_teacher_prompt_are_scored_by_the_teacher():
    rows = [training_row("a", row, teacher_prompt=9 if row in (1, 2) else None) for row in range(4)]
    (learner,) = plan(rows)
    assert sorted(row for part in learner.teacher_micro_batches for row in part.with_context) == [1, 2]


def test_a_loss_with_terms_for_every_row_has_all_rows_computed():
    rows = [
        training_row("a", 0),
        training_row("a", 1, advantage=0.0, response=5),
        training_row("a", 2, response=0),
    ]
    (learner,) = plan(rows, train_every_row=True)
    assert [row.trajectory_id for row in learner.rows] == ["a-0", "a-1"]
    (minibatch,) = learner.minibatches
    assert minibatch.num_trained_tokens == minibatch.num_loss_tokens == 2 + 5
    assert plan([training_row("b", 0, advantage=0.0)], train_every_row=True)[0].minibatches


def test_rows_without_a_teacher_prompt_are_not_scored_without_context_either():
    rows = [training_row(f"g{row}", row, teacher_prompt=9 if row < 4 else None) for row in range(6)]
    plans = plan(rows, num_learners=2, context_free_rows=[1, 2, 5])
    compared = [
        learner.rows.trajectory_ids[row]
        for learner in plans
        for part in learner.teacher_micro_batches
        for row in part.without_context
    ]
    assert sorted(compared) == ["g1-1", "g2-2"]
    assert len({len(learner.teacher_micro_batches) for learner in plans}) == 1


def test_a_row_is_scored_with_and_without_context_beside_what_it_begins_like():
    """In a budget of 40: 8 + 2 of the prompt alone, and 4 + 4 + 2 more of the prompt with evidence."""
    rows = [training_row("a", row, teacher_prompt=12) for row in range(4)]
    for row in rows:
        assert row.teacher_prompt_ids is not None
        row.teacher_prompt_ids[8:] = [7] * 4
    (learner,) = plan(rows, context_free_rows=range(4), micro_batch_tokens=2 * (8 + 2 + 4 + 2))
    pairs = [
        (sorted(part.with_context), sorted(part.without_context)) for part in learner.teacher_micro_batches
    ]
    assert sorted(pairs) == [([0, 1], [0, 1]), ([2, 3], [2, 3])]


def test_branches_of_a_row_that_fills_the_budget_are_scored_together():
    rows = [training_row("a", step, prompt=30) for step in range(3)]
    for step, row in enumerate(rows):
        row.prompt_ids = list(range(10 * step + 10))
        row.teacher_prompt_ids = [*row.prompt_ids, 7, 7]
    (learner,) = plan(rows, micro_batch_tokens=34)
    (scored,) = learner.teacher_micro_batches
    assert sorted(scored.with_context) == [0, 1, 2]


def test_what_rows_begin_with_counts_once_in_the_token_budget():
    ids = np.arange(100)
    sequences = [ids[:10], ids[:30], np.append(ids[:20], ids[90:95]), np.append(ids[:5], ids[80:90])]
    tree = PrefixTree(sequences)
    # 30 for the longest, which holds the first; 5 more for the third; 10 more for the last.
    assert pack_by_prefix(tree, range(4), 45) == [(3, 2, 1, 0)]
    assert pack_by_prefix(tree, range(4), 44) == [(3, 2), (1, 0)]
    # Of the 5 + 20 tokens that two rows grow from every fifth counts: 15 + 10 / 5 … + 30.
    assert pack_by_prefix(tree, range(4), 50, copies_of_a_token=5) == [(3, 2, 1, 0)]
    assert pack_by_prefix(tree, range(4), 49, copies_of_a_token=5) == [(3, 2), (1, 0)]


def test_a_row_that_is_longer_than_the_budget_holds_those_that_it_begins_with():
    ids = np.arange(100)
    assert pack_by_prefix(PrefixTree([ids[:10], ids, ids[:60]]), [0, 1, 2], 50) == [(1, 2, 0)]
    assert pack_by_prefix(PrefixTree([ids, np.append(ids[:99], [7])]), [0, 1], 50) == [(0,), (1,)]
    assert pack_by_prefix(PrefixTree([]), [], 50) == []


def test_a_tree_knows_what_any_of_its_sequences_add_to_each_other():
    ids = np.arange(10)
    tree = PrefixTree([ids[:3], ids[:6], np.append(ids[:4], [9, 9]), ids[:6], ids[5:7], ids[:0]])
    everything = tree.num_new(range(6))
    assert everything.sum() == 6 + 2 + 2
    assert everything[[0, 4, 5]].tolist() == [0, 2, 0]
    assert sorted(everything[[1, 3]].tolist())[0] == 0
    assert tree.num_new([0, 2]).tolist() == [0, 0, 6, 0, 0, 0]
    along, shared = tree.along([0, 1, 4])
    assert (along.tolist(), shared.tolist()) == ([4, 1, 0], [0, 0, 3])
    assert [part.tolist() for part in tree.along([])] == [[], []]


def test_what_a_part_of_a_tree_shares_is_what_its_own_tree_does():
    draw = np.random.default_rng(0)
    sequences = [draw.integers(2, size=draw.integers(1, 12)) for _ in range(200)]
    tree = PrefixTree(sequences)
    for _ in range(20):
        chosen = draw.choice(200, size=30, replace=False)
        alone = {
            tuple(sequences[index][:end]) for index in chosen for end in range(1, len(sequences[index]) + 1)
        }
        assert tree.num_new(chosen).sum() == len(alone)


def test_rows_of_models_that_compute_no_trees_are_packed_by_their_lengths():
    rows = [training_row("a", row, prompt=prompt) for row, prompt in enumerate((8, 18, 8, 18))]
    for row in rows:
        row.prompt_ids = [1] * len(row.prompt_ids)
    (learner,) = plan(rows, micro_batch_tokens=40, as_trees=False)
    assert learner.micro_batches == ((0, 2), (1, 3))


def test_micro_batches_keep_the_token_budget_with_padding():
    # 3 x 10 = 30; a fourth row of 11 would make 44.
    assert pack_by_length([0, 1, 2, 3], [10, 11, 10, 10], 40) == [(0, 2, 3), (1,)]
    assert pack_by_length([5], [100], 40) == [(5,)]
    assert pack_by_length([], [], 40) == []


def test_padding_is_little_for_a_batch_of_many_rows():
    draw = random.Random(1)
    lengths = [draw.randint(73, 130) for _ in range(900)]
    parts = pack_by_length(range(900), lengths, 2048)
    padded = sum(len(part) * max(lengths[row] for row in part) for part in parts)
    assert padded <= 1.02 * sum(lengths)


def test_minibatches_are_random_whole_groups_from_the_seed():
    groups = [name for name in "abcdefg" for _ in range(3)]
    parts = random_minibatches(groups, 3, [1, 2])
    assert sorted(len(part) for part in parts) == [6, 6, 9]
    assert sorted(row for part in parts for row in part) == list(range(21))
    of_parts = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, of_parts)) == len(set.union(*of_parts)) == 7
    assert parts == random_minibatches(groups, 3, [1, 2])
    assert parts != random_minibatches(groups, 3, [1, 3])
    assert [len(part) for part in random_minibatches(groups[:6], 5, [0])] == [3, 3]
    assert random_minibatches([], 5, [0]) == []


def test_a_plan_needs_a_learner():
    with pytest.raises(ValueError, match="num_learners"):
        plan([training_row("a", 0)], num_learners=0)


def test_ragged_lists_are_taken_in_the_order_asked_for():
    lists = Ragged.of([[1], [2, 3], [], [4, 5, 6]], np.int32)
    taken = lists.take([2, 3, 0, 1, 1])
    assert [taken[index].tolist() for index in range(len(taken))] == [[], [4, 5, 6], [1], [2, 3], [2, 3]]
    assert taken.values.dtype == np.int32
    assert len(lists.take([])) == 0


def test_a_distilled_row_without_an_advantage_is_trained_and_its_actions_are_counted_on_all_learners():
    rows = [training_row("g", row, advantage=0.0, teacher_prompt=18) for row in range(4)]
    for row, distilled in zip(rows, (True, True, True, False), strict=True):
        row.distilled = distilled
    rows[0].action_mask = [False, True]
    plans = plan([*rows, training_row("h", 0)], num_learners=2)
    trained = [name for own in plans for part in own.minibatches for name in trained_rows(own, part)]
    assert sorted(trained) == ["g-0", "g-1", "g-2", "h-0"]
    assert [part.num_distilled_tokens for own in plans for part in own.minibatches] == [5, 5]
    assert [part.num_loss_tokens for own in plans for part in own.minibatches] == [10, 10]

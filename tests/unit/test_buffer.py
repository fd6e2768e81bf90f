from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from buffer_helpers import Buffer, FinishedWithoutRows, buffer, give, group_of, trajectory

from serl.buffer.group_buffer import AdmissionError
from serl.types import RolloutRequest, Task, staleness


def admit(target: Buffer, weights_seq_no: int, *group_ids: str) -> None:
    assert target.num_admissible(weights_seq_no) >= len(group_ids)
    for group_id in group_ids:
        target.admit(group_of(group_id))


def complete(target: Buffer, group_id: str, version: int | None = 0, rewards: tuple = (0.0, 10.0)) -> None:
    for request, reward in zip(group_of(group_id, len(rewards)), rewards, strict=True):
        give(target, trajectory(request, version, reward))


def taken_ids(target: Buffer, weights_seq_no: int) -> list[str] | None:
    batch = target.take_batch(weights_seq_no)
    return None if batch is None else [finished.group.group_id for finished in batch]


# --- group buffer: admission and batches ----------------------------------------------------------


def test_as_many_groups_are_admitted_as_can_be_trained_within_the_staleness():
    target = buffer(groups_per_batch=3, max_staleness=2)
    assert target.num_admissible(0) == (0 + 2 + 1) * 3
    admit(target, 0, *"abcd")
    assert target.num_admissible(0) == 5
    assert target.num_admissible(1) == 8


def test_a_group_beyond_the_bound_is_refused():
    target = buffer(groups_per_batch=1, max_staleness=0)
    admit(target, 0, "a")
    with pytest.raises(AdmissionError, match="b: no group may be admitted"):
        target.admit(group_of("b"))


@pytest.mark.parametrize(
    "requests", [[], group_of("a", 1), group_of("a", 3), [*group_of("a", 1), *group_of("b", 2)[1:]]]
)
def test_what_is_no_whole_group_is_refused(requests: list[RolloutRequest]):
    target = buffer(group_size=2)
    target.num_admissible(0)
    with pytest.raises(AdmissionError, match="rollouts 0 to 1"):
        target.admit(requests)


def test_a_group_is_taken_once_when_its_last_rollout_is_back_with_rollouts_in_order():
    target = buffer(group_size=2)
    admit(target, 0, "a")
    first, second = group_of("a")
    give(target, trajectory(second))
    assert target.take_batch(0) is None
    give(target, trajectory(first))
    batch = target.take_batch(0)
    assert batch is not None
    assert [t.rollout_index for t in batch[0].group.trajectories] == [0, 1]
    assert batch[0].group.task == first.task
    assert target.take_batch(0) is None
    assert not target.owns("a")


def test_a_batch_takes_the_oldest_ready_groups_and_passes_slow_ones_over():
    target = buffer(groups_per_batch=2, max_staleness=1)
    admit(target, 0, *"abcd")
    for group_id in "dcb":
        complete(target, group_id)
    assert taken_ids(target, 0) == ["b", "c"]


def test_duplicates_and_trajectories_of_groups_that_left_are_counted_and_ignored():
    target = buffer()
    admit(target, 0, "a")
    first, second = group_of("a")
    give(target, trajectory(first, reward=1.0))
    give(target, trajectory(first, reward=2.0))
    give(target, trajectory(second))
    batch = target.take_batch(0)
    assert batch is not None
    assert [t.reward for t in batch[0].group.trajectories] == [1.0, 0.0]
    give(target, trajectory(second))
    metrics = target.metrics()
    assert metrics["trajectories_duplicate"] == 1
    assert metrics["trajectories_late"] == 1
    assert metrics["trajectories_added"] == 2


def test_a_batch_waits_for_a_group_in_flight_that_would_get_too_old():
    target = buffer(groups_per_batch=1, max_staleness=1)
    admit(target, 0, "slow", "quick")
    complete(target, "quick", version=0)
    assert taken_ids(target, 0) == ["quick"]
    admit(target, 1, "new")
    complete(target, "new", version=1)
    assert target.take_batch(1) is None
    complete(target, "slow", version=0)
    assert taken_ids(target, 1) == ["slow"]
    assert taken_ids(target, 2) == ["new"]


def test_a_batch_waits_already_where_two_slow_groups_could_not_both_be_taken_later():
    target = buffer(groups_per_batch=1, max_staleness=2)
    admit(target, 0, "slow", "slower", "quick")
    complete(target, "quick", version=0)
    assert taken_ids(target, 0) == ["quick"]
    admit(target, 1, "new")
    complete(target, "new", version=1)
    assert target.take_batch(1) is None
    complete(target, "slower", version=0)
    assert taken_ids(target, 1) == ["slower"]
    assert target.take_batch(2) is None
    complete(target, "slow", version=0)
    (slow,) = target.take_batch(2) or []
    assert slow.group.group_id == "slow" and staleness(slow.group, 2) == 2


def test_a_group_sampled_with_older_weights_than_announced_is_discarded_and_its_task_sampled_again():
    target = buffer(groups_per_batch=1, max_staleness=1)
    admit(target, 5, "lagging", "fresh")
    complete(target, "lagging", version=3)
    complete(target, "fresh", version=5)
    assert taken_ids(target, 5) == ["fresh"]
    assert target.metrics()["groups_discarded_stale"] == 1
    assert target.take_discarded_tasks() == [Task("task of lagging")]
    assert target.take_discarded_tasks() == []
    assert target.num_admissible(5) == 1


def test_overdue_groups_do_not_block_when_the_weights_moved_on_without_a_batch():
    target = buffer(groups_per_batch=1, max_staleness=1)
    admit(target, 0, "a", "b")
    complete(target, "a", version=0)
    assert taken_ids(target, 1) == ["a"]
    complete(target, "b", version=0)
    assert target.take_batch(2) is None
    assert target.metrics()["groups_discarded_stale"] == 1


def test_weights_never_go_back():
    target = buffer()
    target.num_admissible(3)
    with pytest.raises(ValueError, match="from 3 to 2"):
        target.take_batch(2)


def test_a_group_without_a_single_step_is_trained_on_like_any_other():
    target = buffer()
    admit(target, 0, "a")
    complete(target, "a", version=None)
    (batch,) = target.take_batch(0) or []
    assert batch.group.group_id == "a" and staleness(batch.group, 0) == 0


# --- group buffer: failures and filtering ---------------------------------------------------------


def test_a_failed_rollout_is_played_again_with_another_seed():
    target = buffer()
    admit(target, 0, "a")
    first, second = group_of("a")
    replacement = target.fail(second, "environment_error")
    assert replacement is not None
    assert (replacement.task, replacement.group_id, replacement.rollout_index) == (second.task, "a", 1)
    assert replacement.seed != second.seed
    give(target, trajectory(first))
    give(target, trajectory(replacement))
    assert taken_ids(target, 0) == ["a"]
    assert target.metrics()["failures_environment_error"] == 1
    assert target.metrics()["retries"] == 1


def test_a_group_whose_rollout_fails_three_times_is_discarded_and_makes_room():
    target = buffer(groups_per_batch=1, max_staleness=0)
    admit(target, 0, "a")
    failing: RolloutRequest | None = group_of("a")[1]
    for _ in range(3):
        assert failing is not None
        failing = target.fail(failing, "environment_error")
    assert failing is None
    assert not target.owns("a")
    assert target.metrics()["groups_discarded_failed"] == 1
    assert target.num_admissible(0) == 1
    give(target, trajectory(group_of("a")[0]))
    assert target.metrics()["trajectories_late"] == 1


def test_a_failure_of_a_rollout_that_is_already_back_changes_nothing():
    target = buffer()
    admit(target, 0, "a")
    complete(target, "a")
    assert target.fail(group_of("a")[0], "env_runner_died") is None
    assert taken_ids(target, 0) == ["a"]


def test_zero_variance_groups_are_filtered_and_others_take_their_place():
    target = buffer(groups_per_batch=1, max_staleness=0, filtered=4)
    admit(target, 0, "all lost")
    for request, num_steps in zip(group_of("all lost"), (3, 7), strict=True):
        give(target, trajectory(request, reward=0.0, num_steps=num_steps))
    assert target.take_batch(0) is None
    admit(target, 0, "all won")
    complete(target, "all won", rewards=(10.0, 10.0))
    admit(target, 0, "mixed")
    complete(target, "mixed", rewards=(0.0, 10.0))
    assert taken_ids(target, 0) == ["mixed"]
    metrics = target.metrics()
    assert metrics["filtered_groups"] == metrics["groups_discarded_zero_variance"] == 2
    assert metrics["filtered_mean_steps"] == pytest.approx(((3 + 7) / 2 + 1) / 2)


def test_filtering_tells_the_length_of_episodes_removed_and_kept():
    target = buffer(groups_per_batch=1, max_staleness=0, filtered=4)
    for group_id, rewards, lengths in (("lost", (0.0, 0.0), (9, 9)), ("mixed", (0.0, 10.0), (5, 2))):
        admit(target, 0, group_id)
        for request, reward, num_steps in zip(group_of(group_id), rewards, lengths, strict=True):
            give(target, trajectory(request, reward=reward, num_steps=num_steps))
    assert taken_ids(target, 0) == ["mixed"]
    metrics = target.metrics()
    assert (metrics["filtered_mean_steps"], metrics["kept_mean_steps"]) == (9.0, 3.5)


def test_filtering_never_starves_the_learners():
    target = buffer(groups_per_batch=2, max_staleness=0, filtered=3)
    for number in range(5):
        admit(target, 0, f"g{number}")
        complete(target, f"g{number}", rewards=(0.0, 0.0))
    assert taken_ids(target, 0) == ["g3", "g4"]
    assert target.metrics()["zero_variance_groups_kept"] == 2
    admit(target, 1, "g5")
    complete(target, "g5", version=1, rewards=(0.0, 0.0))
    assert not target.owns("g5")


def test_without_filtering_zero_variance_groups_are_kept():
    target = buffer()
    admit(target, 0, "a")
    complete(target, "a", rewards=(0.0, 0.0))
    assert taken_ids(target, 0) == ["a"]


# --- group buffer: what it says and saves ---------------------------------------------------------


def test_metrics_count_what_is_ready_and_what_is_in_flight():
    target = buffer(group_size=2, groups_per_batch=3)
    admit(target, 0, *"abc")
    complete(target, "a")
    give(target, trajectory(group_of("b")[1]))
    metrics = target.metrics()
    assert metrics["groups_ready"] == 1
    assert metrics["groups_in_flight"] == 2
    assert metrics["trajectories_in_flight"] == 3
    assert "1 groups ready, 2 in flight, 3 make a batch; b has 1 of 2 trajectories" in target.describe()


def test_a_restored_buffer_hands_out_the_tasks_that_no_learner_had_and_admits_a_full_window():
    target = buffer(groups_per_batch=1, max_staleness=2)
    admit(target, 0, *"abc")
    complete(target, "a")
    complete(target, "b")
    assert taken_ids(target, 0) == ["a"]
    restored = buffer(groups_per_batch=1, max_staleness=2)
    restored.set_state(json.loads(json.dumps(target.get_state())))
    assert restored.take_discarded_tasks() == [Task("task of b"), Task("task of c")]
    assert restored.num_admissible(1) == 3
    assert restored.metrics()["groups_taken"] == 1


def test_a_trajectory_that_completes_a_group_returns_it_to_be_finished_and_filed():
    groups = buffer(groups_per_batch=1, max_staleness=0, filtered=1)
    admit(groups, 0, "a")
    first, second = group_of("a")
    assert groups.add(trajectory(second)) is None
    group = groups.add(trajectory(first, reward=10.0))
    assert group is not None and [t.rollout_index for t in group.trajectories] == [0, 1]
    assert groups.add(trajectory(second)) is None
    assert groups.take_batch(0) is None and groups.ready_group("a") is None
    assert groups.file(FinishedWithoutRows(group, has_variance=True))
    again = FinishedWithoutRows(group, has_variance=False)
    assert groups.file(again), "a group that was filed once is replaced, never filtered"
    assert groups.ready_group("a") is again
    assert groups.take_batch(0) == [again]
    assert not groups.file(again), "it has left"


def test_a_zero_variance_group_is_not_kept_when_it_is_filed():
    groups = buffer(groups_per_batch=1, max_staleness=0, filtered=1)
    admit(groups, 0, "a")
    first, second = group_of("a")
    groups.add(trajectory(first))
    group = groups.add(trajectory(second))
    assert group is not None and not groups.file(FinishedWithoutRows(group, has_variance=False))


def test_ready_groups_are_taken_in_batches_in_the_order_of_admission():
    groups = buffer(groups_per_batch=2, max_staleness=1)
    admit(groups, 0, *"abcd")
    for name in "dcab":
        complete(groups, name)
        if name == "c":
            assert (groups.num_batches_before("c"), groups.num_batches_before("d")) == (0, 0)
    assert [groups.num_batches_before(name) for name in "abcd"] == [0, 0, 1, 1]


def test_a_batch_that_may_not_be_taken_stays_in_the_buffer():
    groups = buffer()
    admit(groups, 0, "a")
    complete(groups, "a")
    offered: list[str] = []

    def is_judged(batch: Sequence[FinishedWithoutRows]) -> bool:
        offered.extend(finished.group.group_id for finished in batch)
        return len(offered) == 2

    assert groups.take_batch(0, is_judged) is None
    assert groups.owns("a")
    assert [finished.group.group_id for finished in groups.take_batch(0, is_judged) or []] == ["a"]
    assert offered == ["a", "a"] and not groups.owns("a")

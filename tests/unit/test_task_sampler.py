from __future__ import annotations

import json
from collections import Counter

import pytest

from envs.base import Task, TaskSet
from serl.buffer.task_sampler import TaskSampler, evaluation_requests
from serl.types import RolloutRequest


def tasks(*task_ids: str) -> TaskSet:
    return TaskSet("tasks", tuple(Task(task_id, task_id[0]) for task_id in task_ids), content_hash="h")


def test_every_pass_deals_every_task_once_and_in_another_order():
    sampler = TaskSampler(tasks(*"abcdefgh"), group_size=2, seed=3)
    dealt = [sampler.next_group()[0].task.task_id for _ in range(24)]
    passes = [dealt[:8], dealt[8:16], dealt[16:]]
    assert [sorted(one) for one in passes] == [list("abcdefgh")] * 3
    assert passes[0] != passes[1] != passes[2]


def test_the_members_of_a_group_share_task_and_id_and_have_their_own_seeds():
    sampler = TaskSampler(tasks("a", "b"), group_size=4, seed=0)
    first, second = sampler.next_group(), sampler.next_group()
    assert [(a.group_id, a.rollout_index) for a in first] == [("g000000", m) for m in range(4)]
    assert {a.group_id for a in second} == {"g000001"}
    assert len({a.task for a in first}) == 1
    assert len({a.seed for a in first + second}) == 8
    assert not any(a.evaluation for a in first)


def test_the_same_seed_deals_the_same_groups_and_another_seed_does_not():
    def dealt(seed: int) -> list[RolloutRequest]:
        sampler = TaskSampler(tasks(*"abcdefgh"), group_size=2, seed=seed)
        return [request for _ in range(8) for request in sampler.next_group()]

    assert dealt(1) == dealt(1)
    assert [a.task for a in dealt(1)] != [a.task for a in dealt(2)]


def test_a_requeued_task_is_dealt_next_in_a_group_of_its_own():
    sampler = TaskSampler(tasks(*"abcd"), group_size=2, seed=0)
    first = sampler.next_group()
    sampler.requeue(first[0].task)
    again = sampler.next_group()
    assert again[0].task == first[0].task
    assert again[0].group_id == "g000001"
    rest = [sampler.next_group()[0].task.task_id for _ in range(3)]
    assert sorted([first[0].task.task_id, *rest]) == list("abcd")


def test_a_sampler_restored_from_json_deals_on_where_the_other_stopped():
    task_set = tasks(*"abcdefg")
    sampler = TaskSampler(task_set, group_size=2, seed=5)
    for _ in range(10):
        last = sampler.next_group()
    sampler.requeue(last[0].task)
    restored = TaskSampler(task_set, group_size=2, seed=5)
    restored.set_state(json.loads(json.dumps(sampler.get_state())))
    assert [restored.next_group() for _ in range(20)] == [sampler.next_group() for _ in range(20)]


def test_the_state_of_another_task_set_or_seed_is_refused():
    state = TaskSampler(tasks("a"), group_size=2, seed=0).get_state()
    other_tasks = TaskSet("others", (Task("a"),), content_hash="other")
    with pytest.raises(ValueError, match="content_hash"):
        TaskSampler(other_tasks, group_size=2, seed=0).set_state(state)
    with pytest.raises(ValueError, match="seed"):
        TaskSampler(tasks("a"), group_size=2, seed=1).set_state(state)


def test_an_empty_task_set_is_refused():
    with pytest.raises(ValueError, match="has no tasks"):
        TaskSampler(tasks(), group_size=2, seed=0)


def test_a_whole_evaluation_has_every_task_once_in_the_order_of_the_manifest():
    evaluation = evaluation_requests(tasks("a1", "b1", "a2"), num_tasks=0, seed=0)
    assert [a.task.task_id for a in evaluation] == ["a1", "b1", "a2"]
    assert len({a.group_id for a in evaluation}) == 3
    assert all(a.evaluation for a in evaluation)


def test_a_smaller_evaluation_is_balanced_over_task_types_and_never_changes():
    task_set = tasks(*(f"a{i}" for i in range(20)), *(f"b{i}" for i in range(5)), "c0")
    evaluation = evaluation_requests(task_set, num_tasks=9, seed=4)
    assert Counter(a.task.task_type for a in evaluation) == {"a": 4, "b": 4, "c": 1}
    assert len({a.task.task_id for a in evaluation}) == 9
    assert evaluation == evaluation_requests(task_set, num_tasks=9, seed=4)
    assert evaluation != evaluation_requests(task_set, num_tasks=9, seed=5)


def test_an_evaluation_larger_than_the_task_set_is_refused():
    with pytest.raises(ValueError, match="4 evaluation tasks .* which has 2"):
        evaluation_requests(tasks("a", "b"), num_tasks=4, seed=0)

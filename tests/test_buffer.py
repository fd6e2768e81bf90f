from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from functools import cache

import pytest

from envs.base import Task, TaskSet
from serl.buffer.group_buffer import AdmissionError, GroupBuffer
from serl.buffer.task_sampler import TaskSampler, panel_assignments
from serl.types import Assignment, Step, Trajectory, VersionSpan


def tasks(*task_ids: str) -> TaskSet:
    return TaskSet("tasks", tuple(Task(task_id, task_id[0]) for task_id in task_ids), content_hash="h")


def step(weights_seq_no: int) -> Step:
    return Step(
        prompt_ids=[1, 2],
        response_ids=[3],
        old_logprobs=[-0.5],
        action_mask=[True],
        version_spans=(VersionSpan(0, 1, weights_seq_no),),
        finish_reason="stop",
        messages=({"role": "user", "content": "look"},),
        response_text="x",
        anchor="a room",
        action="x",
        action_valid=True,
        feedback=None,
        next_observation="a room",
    )


def trajectory(
    assignment: Assignment, version: int | None = 0, reward: float = 0.0, num_steps: int = 1
) -> Trajectory:
    return Trajectory(
        trajectory_id=f"{assignment.group_id}-{assignment.member}",
        group_id=assignment.group_id,
        member=assignment.member,
        task=assignment.task,
        steps=[] if version is None else [step(version) for _ in range(num_steps)],
        reward=reward,
        success=reward > 0,
        end_reason="max_steps",
    )


def group_of(group_id: str, group_size: int = 2) -> list[Assignment]:
    return [
        Assignment(Task(f"task of {group_id}"), group_id, member, seed=member) for member in range(group_size)
    ]


def buffer(
    group_size: int = 2, groups_per_batch: int = 1, max_staleness: int = 1, filtered: int | None = None
) -> GroupBuffer:
    return GroupBuffer(
        group_size,
        groups_per_batch,
        max_staleness,
        filtered is not None,
        max_filtered_groups_per_batch=filtered or 1,
    )


def admit(target: GroupBuffer, weights_seq_no: int, *group_ids: str) -> None:
    assert target.num_admissible(weights_seq_no) >= len(group_ids)
    for group_id in group_ids:
        target.admit(group_of(group_id))


def complete(
    target: GroupBuffer, group_id: str, version: int | None = 0, rewards: tuple = (0.0, 10.0)
) -> None:
    for assignment, reward in zip(group_of(group_id, len(rewards)), rewards, strict=True):
        target.add(trajectory(assignment, version, reward))


def taken_ids(target: GroupBuffer, weights_seq_no: int) -> list[str] | None:
    batch = target.take_batch(weights_seq_no)
    return None if batch is None else [group.group_id for group in batch]


# --- task sampler ---------------------------------------------------------------------------------


def test_every_pass_deals_every_task_once_and_in_another_order():
    sampler = TaskSampler(tasks(*"abcdefgh"), group_size=2, seed=3)
    dealt = [sampler.next_group()[0].task.task_id for _ in range(24)]
    passes = [dealt[:8], dealt[8:16], dealt[16:]]
    assert [sorted(one) for one in passes] == [list("abcdefgh")] * 3
    assert passes[0] != passes[1] != passes[2]


def test_the_members_of_a_group_share_task_and_id_and_have_their_own_seeds():
    sampler = TaskSampler(tasks("a", "b"), group_size=4, seed=0)
    first, second = sampler.next_group(), sampler.next_group()
    assert [(a.group_id, a.member) for a in first] == [("g000000", m) for m in range(4)]
    assert {a.group_id for a in second} == {"g000001"}
    assert len({a.task for a in first}) == 1
    assert len({a.seed for a in first + second}) == 8
    assert not any(a.evaluation for a in first)


def test_the_same_seed_deals_the_same_groups_and_another_seed_does_not():
    def dealt(seed: int) -> list[Assignment]:
        sampler = TaskSampler(tasks(*"abcdefgh"), group_size=2, seed=seed)
        return [assignment for _ in range(8) for assignment in sampler.next_group()]

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


def test_a_whole_panel_has_every_task_once_in_the_order_of_the_manifest():
    panel = panel_assignments(tasks("a1", "b1", "a2"), num_tasks=0, seed=0)
    assert [a.task.task_id for a in panel] == ["a1", "b1", "a2"]
    assert len({a.group_id for a in panel}) == 3
    assert all(a.evaluation for a in panel)


def test_a_smaller_panel_is_balanced_over_task_types_and_never_changes():
    task_set = tasks(*(f"a{i}" for i in range(20)), *(f"b{i}" for i in range(5)), "c0")
    panel = panel_assignments(task_set, num_tasks=9, seed=4)
    assert Counter(a.task.task_type for a in panel) == {"a": 4, "b": 4, "c": 1}
    assert len({a.task.task_id for a in panel}) == 9
    assert panel == panel_assignments(task_set, num_tasks=9, seed=4)
    assert panel != panel_assignments(task_set, num_tasks=9, seed=5)


def test_a_panel_larger_than_the_task_set_is_refused():
    with pytest.raises(ValueError, match="panel of 4 tasks .* which has 2"):
        panel_assignments(tasks("a", "b"), num_tasks=4, seed=0)


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
    "assignments", [[], group_of("a", 1), group_of("a", 3), [*group_of("a", 1), *group_of("b", 2)[1:]]]
)
def test_what_is_no_whole_group_is_refused(assignments: list[Assignment]):
    target = buffer(group_size=2)
    target.num_admissible(0)
    with pytest.raises(AdmissionError, match="members 0 to 1"):
        target.admit(assignments)


def test_a_group_is_taken_once_when_its_last_member_is_back_with_members_in_order():
    target = buffer(group_size=2)
    admit(target, 0, "a")
    first, second = group_of("a")
    target.add(trajectory(second))
    assert target.take_batch(0) is None
    target.add(trajectory(first))
    batch = target.take_batch(0)
    assert batch is not None
    assert [t.member for t in batch[0].trajectories] == [0, 1]
    assert batch[0].task == first.task
    assert target.take_batch(0) is None
    assert not target.owns("a")


def test_a_batch_takes_the_oldest_complete_groups_and_passes_slow_ones_over():
    target = buffer(groups_per_batch=2, max_staleness=1)
    admit(target, 0, *"abcd")
    for group_id in "dcb":
        complete(target, group_id)
    assert taken_ids(target, 0) == ["b", "c"]


def test_duplicates_and_trajectories_of_groups_that_left_are_counted_and_ignored():
    target = buffer()
    admit(target, 0, "a")
    first, second = group_of("a")
    target.add(trajectory(first, reward=1.0))
    target.add(trajectory(first, reward=2.0))
    target.add(trajectory(second))
    batch = target.take_batch(0)
    assert batch is not None
    assert [t.reward for t in batch[0].trajectories] == [1.0, 0.0]
    target.add(trajectory(second))
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
    assert taken_ids(target, 2) == ["slow"]
    assert target.metrics()["staleness_max"] == 2


def test_a_group_sampled_with_older_weights_than_announced_is_discarded_and_its_task_dealt_again():
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
    assert taken_ids(target, 0) == ["a"]
    assert target.metrics()["staleness_max"] == 0


# --- group buffer: failures and filtering ---------------------------------------------------------


def test_a_failed_member_is_played_again_with_another_seed():
    target = buffer()
    admit(target, 0, "a")
    first, second = group_of("a")
    replacement = target.fail(second, "environment_error")
    assert replacement is not None
    assert (replacement.task, replacement.group_id, replacement.member) == (second.task, "a", 1)
    assert replacement.seed != second.seed
    target.add(trajectory(first))
    target.add(trajectory(replacement))
    assert taken_ids(target, 0) == ["a"]
    assert target.metrics()["failures_environment_error"] == 1
    assert target.metrics()["retries"] == 1


def test_a_group_whose_member_fails_three_times_is_discarded_and_makes_room():
    target = buffer(groups_per_batch=1, max_staleness=0)
    admit(target, 0, "a")
    failing: Assignment | None = group_of("a")[1]
    for _ in range(3):
        assert failing is not None
        failing = target.fail(failing, "environment_error")
    assert failing is None
    assert not target.owns("a")
    assert target.metrics()["groups_discarded_failed"] == 1
    assert target.num_admissible(0) == 1
    target.add(trajectory(group_of("a")[0]))
    assert target.metrics()["trajectories_late"] == 1


def test_a_failure_of_a_member_that_is_already_back_changes_nothing():
    target = buffer()
    admit(target, 0, "a")
    complete(target, "a")
    assert target.fail(group_of("a")[0], "env_runner_died") is None
    assert taken_ids(target, 0) == ["a"]


def test_groups_without_reward_spread_are_filtered_and_others_take_their_place():
    target = buffer(groups_per_batch=1, max_staleness=0, filtered=4)
    admit(target, 0, "all lost")
    for assignment, num_steps in zip(group_of("all lost"), (3, 7), strict=True):
        target.add(trajectory(assignment, reward=0.0, num_steps=num_steps))
    assert target.take_batch(0) is None
    admit(target, 0, "all won")
    complete(target, "all won", rewards=(10.0, 10.0))
    admit(target, 0, "mixed")
    complete(target, "mixed", rewards=(0.0, 10.0))
    assert taken_ids(target, 0) == ["mixed"]
    metrics = target.metrics()
    assert metrics["filtered_groups"] == metrics["groups_discarded_no_spread"] == 2
    assert metrics["filtered_mean_steps"] == pytest.approx(((3 + 7) / 2 + 1) / 2)


def test_filtering_never_starves_the_learners():
    target = buffer(groups_per_batch=2, max_staleness=0, filtered=3)
    for number in range(5):
        admit(target, 0, f"g{number}")
        complete(target, f"g{number}", rewards=(0.0, 0.0))
    assert taken_ids(target, 0) == ["g3", "g4"]
    assert target.metrics()["groups_kept_without_spread"] == 2
    admit(target, 1, "g5")
    complete(target, "g5", version=1, rewards=(0.0, 0.0))
    assert not target.owns("g5")


def test_without_filtering_groups_without_spread_are_kept():
    target = buffer()
    admit(target, 0, "a")
    complete(target, "a", rewards=(0.0, 0.0))
    assert taken_ids(target, 0) == ["a"]


# --- group buffer: what it says and saves ---------------------------------------------------------


def test_metrics_count_what_is_ready_and_what_is_in_flight():
    target = buffer(group_size=2, groups_per_batch=3)
    admit(target, 0, *"abc")
    complete(target, "a")
    target.add(trajectory(group_of("b")[1]))
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


class Simulation:
    """Slots play trajectories of random length, a learner takes batches; time jumps from event to event."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.group_size = self.random.choice([1, 2, 3])
        self.groups_per_batch = self.random.choice([1, 2, 4])
        self.max_staleness = self.random.choice([0, 1, 2, 3])
        self.failure_rate = self.random.choice([0.0, 0.05])
        self.filtered = self.random.choice([None, 2])
        self.num_slots = self.random.choice([2, 5, 16])
        self.update_seconds = self.random.choice([0.1, 3.0])
        self.buffer = buffer(self.group_size, self.groups_per_batch, self.max_staleness, self.filtered)
        self.sampler = TaskSampler(tasks(*map(str, range(500))), self.group_size, seed)
        self.version = 0
        self.waiting: list[Assignment] = []
        self.events: list[tuple[float, int, str, Assignment | None, int]] = []
        self.num_events = 0
        self.num_playing = 0
        self.learning = False
        self.now = 0.0
        self.trained: list[str] = []
        self.staleness: list[int] = []

    def schedule(self, seconds: float, kind: str, assignment: Assignment | None = None) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (self.now + seconds, self.num_events, kind, assignment, self.version))

    def run(self, num_updates: int) -> None:
        while self.version < num_updates:
            self.admit_and_play()
            self.take_batch()
            assert self.events, f"nothing will ever happen again: {self.buffer.describe()}"
            self.now, _, kind, assignment, version = heapq.heappop(self.events)
            if kind == "updated":
                self.learning = False
                self.version += 1
            else:
                assert assignment is not None
                self.num_playing -= 1
                self.finish(assignment, version)

    def admit_and_play(self) -> None:
        for _ in range(self.buffer.num_admissible(self.version)):
            assignments = self.sampler.next_group()
            self.buffer.admit(assignments)
            self.waiting += assignments
        metrics = self.buffer.metrics()
        num_groups = metrics["groups_ready"] + metrics["groups_in_flight"]
        assert num_groups <= (self.max_staleness + 1) * self.groups_per_batch
        while self.waiting and self.num_playing < self.num_slots:
            self.num_playing += 1
            self.schedule(self.random.paretovariate(1.1), "played", self.waiting.pop(0))

    def finish(self, assignment: Assignment, version: int) -> None:
        if self.random.random() < self.failure_rate:
            replacement = self.buffer.fail(assignment, "environment_error")
            self.waiting += [replacement] if replacement else []
        else:
            self.buffer.add(trajectory(assignment, version, reward=self.random.choice([0.0, 10.0])))

    def take_batch(self) -> None:
        if self.learning:
            return
        batch = self.buffer.take_batch(self.version)
        if batch is not None:
            self.learning = True
            self.trained += [group.group_id for group in batch]
            for group in batch:
                assert group.weights_seq_no is not None
                self.staleness.append(self.version - group.weights_seq_no)
            self.schedule(self.random.expovariate(1 / self.update_seconds), "updated")


@cache
def simulated(seed: int) -> Simulation:
    simulation = Simulation(seed)
    simulation.run(num_updates=40)
    return simulation


@pytest.mark.parametrize("seed", range(60))
def test_in_any_order_of_completion_no_group_is_trained_too_late_or_twice_or_thrown_away(seed: int):
    simulation = simulated(seed)
    assert max(simulation.staleness) <= simulation.max_staleness
    assert len(simulation.trained) == len(set(simulation.trained)) == 40 * simulation.groups_per_batch
    assert simulation.buffer.metrics().get("groups_discarded_stale", 0) == 0


def test_the_simulated_orders_do_reach_the_staleness_bound():
    reached = {s.max_staleness for s in map(simulated, range(60)) if max(s.staleness) == s.max_staleness}
    assert reached == {0, 1, 2, 3}

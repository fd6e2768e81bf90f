"""Random orders of completion, random failures: no group is ever trained too late."""

from __future__ import annotations

import heapq
import random
from functools import cache

import pytest
from buffer_helpers import buffer, give, trajectory

from envs.base import Task, TaskSet
from serl.buffer.task_sampler import TaskSampler
from serl.types import RolloutRequest, staleness


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
        self.sampler = TaskSampler(
            TaskSet("tasks", tuple(Task(str(n)) for n in range(500)), "h"), self.group_size, seed
        )
        self.version = 0
        self.waiting: list[RolloutRequest] = []
        self.events: list[tuple[float, int, str, RolloutRequest | None, int]] = []
        self.num_events = 0
        self.num_playing = 0
        self.learning = False
        self.now = 0.0
        self.trained: list[str] = []
        self.staleness: list[int] = []

    def schedule(self, seconds: float, kind: str, request: RolloutRequest | None = None) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (self.now + seconds, self.num_events, kind, request, self.version))

    def run(self, num_updates: int) -> None:
        while self.version < num_updates:
            self.admit_and_play()
            self.take_batch()
            assert self.events, f"nothing will ever happen again: {self.buffer.describe()}"
            self.now, _, kind, request, version = heapq.heappop(self.events)
            if kind == "updated":
                self.learning = False
                self.version += 1
            else:
                assert request is not None
                self.num_playing -= 1
                self.finish(request, version)

    def admit_and_play(self) -> None:
        for _ in range(self.buffer.num_admissible(self.version)):
            requests = self.sampler.next_group()
            self.buffer.admit(requests)
            self.waiting += requests
        metrics = self.buffer.metrics()
        num_groups = metrics["groups_ready"] + metrics["groups_in_flight"]
        assert num_groups <= (self.max_staleness + 1) * self.groups_per_batch
        while self.waiting and self.num_playing < self.num_slots:
            self.num_playing += 1
            self.schedule(self.random.paretovariate(1.1), "played", self.waiting.pop(0))

    def finish(self, request: RolloutRequest, version: int) -> None:
        if self.random.random() < self.failure_rate:
            replacement = self.buffer.fail(request, "environment_error")
            self.waiting += [replacement] if replacement else []
        else:
            give(self.buffer, trajectory(request, version, reward=self.random.choice([0.0, 10.0])))

    def take_batch(self) -> None:
        if self.learning:
            return
        batch = self.buffer.take_batch(self.version)
        if batch is not None:
            self.learning = True
            self.trained += [finished.group.group_id for finished in batch]
            self.staleness += [staleness(finished.group, self.version) for finished in batch]
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

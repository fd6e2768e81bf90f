"""Groups from admission to the learners: complete, fresh enough, each trajectory trained on at most once.

    admit ──▶ in flight ──(all members back)──▶ ready ──(take_batch)──▶ learners
                 │ a member failed too often       │ no reward spread (``filter_groups``), or too old
                 └─────────────▶ discarded ◀───────┘

Why no group is trained more than ``max_staleness`` = s updates behind the weights that sampled it.
Let B be ``groups_per_batch`` and v the version of the served weights, so that B·v groups have been taken.

1. A group admitted at version a is sampled under versions ≥ a, so taking it up to version a + s, its
   deadline, is early enough.
2. At version v a group is admitted only while admitted − discarded < (v + s + 1)·B: with what was taken,
   at most (s + 1)·B groups are ever in the buffer.
3. A batch takes the oldest complete groups, but only if what stays can still be taken in time: for every
   d ≥ v at most (d − v)·B of the groups left have a deadline ≤ d. Otherwise it waits for those in flight.

Call it feasible at v if for every d ≥ v at most (d − v + 1)·B groups have a deadline ≤ d. Then a batch of the
B earliest deadlines passes rule 3, so waiting ends once groups in flight complete; and after any batch that
passes, it is feasible at v + 1. New groups have deadline v + 1 + s, the latest of all, for which rule 2 says
the same. So a slow group is passed over as long as that costs nothing, and no longer. What breaks the
premise (an engine that answered with older weights than those announced) makes a group too old: it is
discarded and counted, and its task is dealt again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envs.base import Task
from serl.types import RolloutRequest, Trajectory, TrajectoryGroup


class AdmissionError(RuntimeError):
    """More groups than `GroupBuffer.num_admissible` allowed, or a group that is no group."""


@dataclass(slots=True)
class _OpenGroup:
    """A group in the buffer, in flight until ``trajectories`` has every rollout_index."""

    group_id: str
    task: Task
    deadline: int
    num_attempts: list[int]
    trajectories: dict[int, Trajectory] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.trajectories) == len(self.num_attempts)

    def as_trajectory_group(self) -> TrajectoryGroup:
        return TrajectoryGroup(
            self.group_id,
            self.task,
            [self.trajectories[index] for index in sorted(self.trajectories)],
        )


class GroupBuffer:
    """Holds at most (max_staleness + 1) · groups_per_batch groups of ``group_size`` trajectories.

    With ``filter_groups`` a group whose trajectories all have the same reward is discarded and others take
    its place, up to ``max_filtered_groups_per_batch`` between two batches; further ones are kept, so that
    learners never starve. With ``normalize_by_length`` rewards are compared per step, as advantages will be.
    What filtering does to the length of episodes is told: ``filtered_mean_steps`` of the groups removed since
    the batch before beside ``kept_mean_steps`` of those in the batch. A member that fails ``max_attempts``
    times discards its group.
    """

    def __init__(
        self,
        group_size: int,
        groups_per_batch: int,
        max_staleness: int,
        filter_groups: bool,
        max_filtered_groups_per_batch: int,
        max_attempts: int = 3,
        normalize_by_length: bool = False,
    ):
        self._group_size = group_size
        self._groups_per_batch = groups_per_batch
        self._max_staleness = max_staleness
        self._filter_groups = filter_groups
        self._max_filtered_groups_per_batch = max_filtered_groups_per_batch
        self._max_attempts = max_attempts
        self._normalize_by_length = normalize_by_length
        self._groups: dict[str, _OpenGroup] = {}
        self._discarded_tasks: list[Task] = []
        self._counters: Counter[str] = Counter()
        self._last_batch: dict[str, float] = {}
        self._filtered_lengths: list[float] = []
        # Admission counts from the first version it is told: 0 in a new run, another after a restore.
        self._first_weights_seq_no: int | None = None
        self._weights_seq_no = 0
        self._num_admitted = 0
        self._num_discarded = 0

    def num_admissible(self, weights_seq_no: int) -> int:
        """How many groups may be admitted now that ``weights_seq_no`` is served."""
        self._advance(weights_seq_no)
        assert self._first_weights_seq_no is not None
        batches = weights_seq_no - self._first_weights_seq_no + self._max_staleness + 1
        return max(0, batches * self._groups_per_batch - (self._num_admitted - self._num_discarded))

    def admit(self, requests: Sequence[RolloutRequest]) -> None:
        """Opens a group at the last version the buffer was told of. Raises AdmissionError."""
        members = [(a.group_id, a.task, a.rollout_index) for a in requests]
        if not members or members != [(members[0][0], members[0][1], m) for m in range(self._group_size)]:
            raise AdmissionError(
                f"a group is the members 0 to {self._group_size - 1} of one group id and task, not "
                f"{[(group_id, task.task_id, rollout_index) for group_id, task, rollout_index in members]}"
            )
        group_id, task, _ = members[0]
        if group_id in self._groups:
            raise AdmissionError(f"group {group_id} has already been admitted")
        if self.num_admissible(self._weights_seq_no) == 0:
            raise AdmissionError(f"group {group_id}: no group may be admitted at {self.describe()}")
        deadline = self._weights_seq_no + self._max_staleness
        self._groups[group_id] = _OpenGroup(group_id, task, deadline, [1] * self._group_size)
        self._num_admitted += 1
        self._counters["groups_admitted"] += 1

    def owns(self, group_id: str) -> bool:
        """Whether the group is in the buffer: admitted, neither taken nor discarded."""
        return group_id in self._groups

    def add(self, trajectory: Trajectory) -> TrajectoryGroup | None:
        """Files a finished trajectory; returns its group if that is complete now and stays.

        A second trajectory of a rollout_index, or one of a group that left, is counted and ignored.
        """
        group = self._groups.get(trajectory.group_id)
        if group is None:
            self._counters["trajectories_late"] += 1
            return None
        if trajectory.rollout_index in group.trajectories:
            self._counters["trajectories_duplicate"] += 1
            return None
        group.trajectories[trajectory.rollout_index] = trajectory
        self._counters["trajectories_added"] += 1
        if not group.complete:
            return None
        if self._filter_groups and not self._has_spread(group):
            self._filter(group)
        return group.as_trajectory_group() if self.owns(group.group_id) else None

    def num_batches_before(self, group_id: str) -> int:
        """How many batches of complete groups would be taken before the complete group ``group_id``."""
        complete = [other.group_id for other in self._complete_groups()]
        return complete.index(group_id) // self._groups_per_batch

    def fail(self, request: RolloutRequest, reason: str) -> RolloutRequest | None:
        """The request to play instead of a failed one; None if its group left or is discarded for it.

        The replacement is the same member with another seed.
        """
        self._counters[f"failures_{reason}"] += 1
        group = self._groups.get(request.group_id)
        if group is None or request.rollout_index in group.trajectories:
            return None
        if group.num_attempts[request.rollout_index] == self._max_attempts:
            self._discard(group, "failed")
            return None
        group.num_attempts[request.rollout_index] += 1
        self._counters["retries"] += 1
        return replace(request, seed=random.Random(f"{request.seed}:retry").getrandbits(31))

    def take_batch(
        self,
        weights_seq_no: int,
        is_ready: Callable[[Sequence[TrajectoryGroup]], bool] = lambda batch: True,
    ) -> list[TrajectoryGroup] | None:
        """The ``groups_per_batch`` oldest complete groups, in the order of admission.

        None while there are too few, while a group in flight would get too old if it were passed over, or
        while ``is_ready`` says no to the batch: it stays in the buffer then.
        """
        self._advance(weights_seq_no)
        self._discard_stale()
        batch = self._complete_groups()[: self._groups_per_batch]
        if len(batch) < self._groups_per_batch or self._too_urgent_to_leave(batch):
            return None
        taken = [group.as_trajectory_group() for group in batch]
        if not is_ready(taken):
            return None
        for group in batch:
            del self._groups[group.group_id]
        self._counters["groups_taken"] += len(batch)
        self._last_batch = self._metrics_of(taken, weights_seq_no)
        self._filtered_lengths = []
        return taken

    def next_groups(self) -> list[TrajectoryGroup]:
        """The complete groups of the coming batch so far, at most ``groups_per_batch``; they stay here."""
        return [group.as_trajectory_group() for group in self._complete_groups()[: self._groups_per_batch]]

    def take_discarded_tasks(self) -> list[Task]:
        """Tasks to deal again, handed out once: of groups that got too old, or were lost at a restore."""
        tasks, self._discarded_tasks = self._discarded_tasks, []
        return tasks

    def metrics(self) -> dict[str, float]:
        """What is in the buffer now, the sums since the run began, and the staleness of the last batch."""
        num_ready = len(self._complete_groups())
        in_flight = sum(self._group_size - len(group.trajectories) for group in self._groups.values())
        now = {
            "groups_ready": float(num_ready),
            "groups_in_flight": float(len(self._groups) - num_ready),
            "trajectories_in_flight": float(in_flight),
        }
        return now | {name: float(count) for name, count in self._counters.items()} | self._last_batch

    def describe(self) -> str:
        """One line for whoever waits for a batch: what is there, and what is missing."""
        metrics = self.metrics()
        line = (
            f"weights_seq_no {self._weights_seq_no}: {metrics['groups_ready']:.0f} groups ready, "
            f"{metrics['groups_in_flight']:.0f} in flight, {self._groups_per_batch} make a batch"
        )
        oldest = next((group for group in self._groups.values() if not group.complete), None)
        if oldest is not None:
            line += f"; {oldest.group_id} has {len(oldest.trajectories)} of {self._group_size} trajectories"
        return line

    def get_state(self) -> dict[str, Any]:
        """JSON-ready: the sums, and the tasks of all groups that no learner has had."""
        tasks = [*self._discarded_tasks, *(group.task for group in self._groups.values())]
        return {
            "counters": dict(self._counters),
            "tasks": [{"task_id": task.task_id, "task_type": task.task_type} for task in tasks],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state` with an empty buffer; `take_discarded_tasks` has what was lost."""
        self._groups.clear()
        self._filtered_lengths = []
        self._last_batch = {}
        self._first_weights_seq_no = None
        self._weights_seq_no = self._num_admitted = self._num_discarded = 0
        self._counters = Counter(state["counters"])
        self._discarded_tasks = [Task(**task) for task in state["tasks"]]

    def _complete_groups(self) -> list[_OpenGroup]:
        """In the order of admission."""
        return [group for group in self._groups.values() if group.complete]

    def _advance(self, weights_seq_no: int) -> None:
        if weights_seq_no < self._weights_seq_no:
            raise ValueError(f"weights_seq_no went back from {self._weights_seq_no} to {weights_seq_no}")
        self._weights_seq_no = weights_seq_no
        if self._first_weights_seq_no is None:
            self._first_weights_seq_no = weights_seq_no

    def _too_urgent_to_leave(self, batch: Sequence[_OpenGroup]) -> bool:
        """Whether rule 3 forbids this batch while one with earlier deadlines may still come."""
        chosen = {group.group_id for group in batch}
        left = [group.deadline for group in self._groups.values() if group.group_id not in chosen]
        for deadline in range(self._weights_seq_no, batch[-1].deadline):
            num_urgent = sum(other <= deadline for other in left)
            if num_urgent > (deadline - self._weights_seq_no) * self._groups_per_batch:
                return True
        return False

    def _discard_stale(self) -> None:
        for group in self._complete_groups():
            oldest = group.as_trajectory_group().weights_seq_no
            if oldest is not None and self._weights_seq_no - oldest > self._max_staleness:
                self._discard(group, "stale")
                self._discarded_tasks.append(group.task)

    def _has_spread(self, group: _OpenGroup) -> bool:
        trajectories = group.trajectories.values()
        lengths = [len(t.steps) if self._normalize_by_length and t.steps else 1 for t in trajectories]
        return len({t.reward / length for t, length in zip(trajectories, lengths, strict=True)}) > 1

    def _filter(self, group: _OpenGroup) -> None:
        if len(self._filtered_lengths) == self._max_filtered_groups_per_batch:
            self._counters["zero_variance_groups_kept"] += 1
            return
        self._filtered_lengths.append(_mean_steps(group.trajectories.values()))
        self._discard(group, "zero_variance")

    def _discard(self, group: _OpenGroup, reason: str) -> None:
        del self._groups[group.group_id]
        self._num_discarded += 1
        self._counters[f"groups_discarded_{reason}"] += 1

    def _metrics_of(self, batch: Sequence[TrajectoryGroup], weights_seq_no: int) -> dict[str, float]:
        staleness = [weights_seq_no - g.weights_seq_no for g in batch if g.weights_seq_no is not None]
        filtered, kept = self._filtered_lengths, [_mean_steps(group.trajectories) for group in batch]
        return {
            "staleness_mean": sum(staleness) / len(staleness) if staleness else 0.0,
            "staleness_max": float(max(staleness, default=0)),
            "filtered_groups": float(len(filtered)),
            "filtered_mean_steps": sum(filtered) / len(filtered) if filtered else 0.0,
            "kept_mean_steps": sum(kept) / len(kept),
        }


def _mean_steps(trajectories: Collection[Trajectory]) -> float:
    return sum(len(trajectory.steps) for trajectory in trajectories) / len(trajectories)

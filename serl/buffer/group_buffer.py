"""Groups from admission to the learners: complete, recent enough, each trajectory trained on at most once.

    admit ──▶ in flight ──(add: all back)──▶ complete ──(file: finished)──▶ ready ──(take_batch)──▶ learners
                 │ a rollout failed too often  zero variance (``filter_groups``) │   │ too old
                 └──────────────────────────▶ discarded ◀────────────────────────┴───┘

Why no group is trained more than ``max_staleness`` = s updates behind the weights that sampled it.
Let B be ``groups_per_batch`` and v the version of the served weights, so that B·v groups have been taken.

1. A group admitted at version a is sampled under versions ≥ a, so taking it up to version a + s, its
   deadline, is early enough.
2. At version v a group is admitted only while admitted − discarded < (v + s + 1)·B: with what was taken,
   at most (s + 1)·B groups are ever in the buffer.
3. A batch takes the oldest ready groups, but only if what stays can still be taken in time: for every
   d ≥ v at most (d − v)·B of the groups left have a deadline ≤ d. Otherwise it waits for those in flight.

Call it feasible at v if for every d ≥ v at most (d − v + 1)·B groups have a deadline ≤ d. Then a batch of the
B earliest deadlines passes rule 3, so waiting ends once groups in flight are ready; and after any batch that
passes, it is feasible at v + 1. New groups have deadline v + 1 + s, the latest of all, for which rule 2 says
the same. So a slow group is passed over as long as that costs nothing, and no longer. What breaks the
premise (an engine that answered with older weights than those announced) makes a group too old: it is
discarded and counted, and its task is sampled again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from serl.types import RolloutRequest, Task, Trajectory, TrajectoryGroup, staleness


class Finished(Protocol):
    """What the buffer has to know of a group that was finished (`serl.batch.group.FinishedGroup`)."""

    @property
    def group(self) -> TrajectoryGroup: ...

    @property
    def has_variance(self) -> bool: ...


FinishedT = TypeVar("FinishedT", bound=Finished)


class AdmissionError(RuntimeError):
    """More groups than `GroupBuffer.num_admissible` allowed, or a group that is no group."""


@dataclass(slots=True)
class _OpenGroup(Generic[FinishedT]):
    """A group in the buffer, in flight until ``trajectories`` has every rollout, ready once ``finished``.

    ``weights_seq_no`` is that of the ready group, kept because finding it walks through all steps.
    """

    group_id: str
    task: Task
    deadline: int
    num_attempts: list[int]
    trajectories: dict[int, Trajectory] = field(default_factory=dict[int, Trajectory])
    finished: FinishedT | None = None
    weights_seq_no: int | None = None


class GroupBuffer(Generic[FinishedT]):
    """Holds at most (max_staleness + 1) · groups_per_batch groups of ``group_size`` trajectories.

    Groups are finished elsewhere: `add` hands out the one that is complete, `file` takes it back. With
    ``filter_groups`` a zero-variance group is discarded and others take its place, up to
    ``max_filtered_groups_per_batch`` between two batches; further ones are kept, so that learners never
    starve. What filtering does to the length of episodes is told: ``filtered_mean_steps`` of the groups
    removed since the batch before beside ``kept_mean_steps`` of those in the batch. A rollout that fails
    ``max_attempts`` times discards its group.
    """

    def __init__(
        self,
        group_size: int,
        groups_per_batch: int,
        max_staleness: int,
        filter_groups: bool,
        max_filtered_groups_per_batch: int,
        max_attempts: int = 3,
    ):
        self._group_size = group_size
        self._groups_per_batch = groups_per_batch
        self._max_staleness = max_staleness
        self._filter_groups = filter_groups
        self._max_filtered_groups_per_batch = max_filtered_groups_per_batch
        self._max_attempts = max_attempts
        self._groups: dict[str, _OpenGroup[FinishedT]] = {}
        self._discarded_tasks: list[Task] = []
        self._counters: Counter[str] = Counter()
        self._last_batch: dict[str, float] = {}
        self._filtered_lengths: list[float] = []
        # Admission counts from the first version it is told: 0 in a new run, another after a restore.
        self._first_weights_seq_no: int | None = None
        self._weights_seq_no = 0
        self._num_admitted = 0
        self._num_discarded = 0

    @property
    def batch_waits(self) -> bool:
        """Whether as many groups are ready as make a batch."""
        return len(self._ready_groups()) >= self._groups_per_batch

    def num_admissible(self, weights_seq_no: int) -> int:
        """How many groups may be admitted now that ``weights_seq_no`` is served."""
        self._advance(weights_seq_no)
        assert self._first_weights_seq_no is not None
        batches = weights_seq_no - self._first_weights_seq_no + self._max_staleness + 1
        return max(0, batches * self._groups_per_batch - (self._num_admitted - self._num_discarded))

    def admit(self, requests: Sequence[RolloutRequest]) -> None:
        """Opens a group at the last version the buffer was told of. Raises AdmissionError."""
        first = requests[0] if requests else None
        wanted = [(first.group_id, first.task, index) for index in range(self._group_size)] if first else None
        asked = [(request.group_id, request.task, request.rollout_index) for request in requests]
        if first is None or asked != wanted:
            raise AdmissionError(
                f"a group is the rollouts 0 to {self._group_size - 1} of one group id and task, not "
                f"{[(group_id, task.task_id, index) for group_id, task, index in asked]}"
            )
        if first.group_id in self._groups:
            raise AdmissionError(f"group {first.group_id} has already been admitted")
        if self.num_admissible(self._weights_seq_no) == 0:
            raise AdmissionError(f"group {first.group_id}: no group may be admitted at {self.describe()}")
        deadline = self._weights_seq_no + self._max_staleness
        attempts = [1] * self._group_size
        self._groups[first.group_id] = _OpenGroup(first.group_id, first.task, deadline, attempts)
        self._num_admitted += 1
        self._counters["groups_admitted"] += 1

    def owns(self, group_id: str) -> bool:
        """Whether the group is in the buffer: admitted, neither taken nor discarded."""
        return group_id in self._groups

    def add(self, trajectory: Trajectory) -> TrajectoryGroup | None:
        """Takes a trajectory in; returns its group if that is complete now, to be finished.

        A second trajectory of a rollout, or one of a group that left, is counted and ignored.
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
        if len(group.trajectories) < self._group_size:
            return None
        in_order = [group.trajectories[index] for index in range(self._group_size)]
        return TrajectoryGroup(group.group_id, group.task, in_order)

    def file(self, finished: FinishedT) -> bool:
        """Takes a finished group in, or in the place of what it was; returns whether it stays."""
        group = self._groups.get(finished.group.group_id)
        if group is None:
            return False
        is_new = group.finished is None
        group.finished, group.weights_seq_no = finished, finished.group.weights_seq_no
        if is_new and self._filter_groups and not finished.has_variance:
            self._filter(group, finished)
        return self.owns(group.group_id)

    def num_batches_before(self, group_id: str) -> int:
        """How many batches of ready groups would be taken before the ready group ``group_id``."""
        ready = [group.group_id for group in self._groups.values() if group.finished is not None]
        return ready.index(group_id) // self._groups_per_batch

    def fail(self, request: RolloutRequest, reason: str) -> RolloutRequest | None:
        """The request to play instead of a failed one; None if its group left or is discarded for it.

        The replacement is the same rollout with another seed.
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
        may_be_taken: Callable[[Sequence[FinishedT]], bool] = lambda batch: True,
    ) -> list[FinishedT] | None:
        """The ``groups_per_batch`` oldest ready groups, in the order of admission.

        None while there are too few, while a group in flight would get too old if it were passed over, or
        while ``may_be_taken`` says no to the batch: it stays in the buffer then.
        """
        self._advance(weights_seq_no)
        self._discard_stale()
        batch = self._ready_groups()[: self._groups_per_batch]
        if len(batch) < self._groups_per_batch or self._too_urgent_to_leave(batch):
            return None
        if not may_be_taken(batch):
            return None
        for finished in batch:
            del self._groups[finished.group.group_id]
        self._counters["groups_taken"] += len(batch)
        self._last_batch = self._lengths_of(batch)
        self._filtered_lengths = []
        return batch

    def ready_group(self, group_id: str) -> FinishedT | None:
        """The finished group, while it is in the buffer."""
        group = self._groups.get(group_id)
        return None if group is None else group.finished

    def take_discarded_tasks(self) -> list[Task]:
        """Tasks to sample again, handed out once: of groups that got too old, or were lost at a restore."""
        tasks, self._discarded_tasks = self._discarded_tasks, []
        return tasks

    def metrics(self) -> dict[str, float]:
        """What is in the buffer now, the sums since the run began, and episode lengths of the last batch."""
        num_ready = len(self._ready_groups())
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
        oldest = next((group for group in self._groups.values() if group.finished is None), None)
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
        """Resumes from `get_state` with an empty buffer; `take_discarded_tasks` has what was lost."""
        self._groups.clear()
        self._filtered_lengths = []
        self._last_batch = {}
        self._first_weights_seq_no = None
        self._weights_seq_no = self._num_admitted = self._num_discarded = 0
        self._counters = Counter(state["counters"])
        self._discarded_tasks = [Task(**task) for task in state["tasks"]]

    def _ready_groups(self) -> list[FinishedT]:
        """In the order of admission."""
        return [group.finished for group in self._groups.values() if group.finished is not None]

    def _advance(self, weights_seq_no: int) -> None:
        if weights_seq_no < self._weights_seq_no:
            raise ValueError(f"weights_seq_no went back from {self._weights_seq_no} to {weights_seq_no}")
        self._weights_seq_no = weights_seq_no
        if self._first_weights_seq_no is None:
            self._first_weights_seq_no = weights_seq_no

    def _too_urgent_to_leave(self, batch: Sequence[FinishedT]) -> bool:
        """Whether rule 3 forbids this batch while one with earlier deadlines may still come."""
        chosen = {finished.group.group_id for finished in batch}
        left = [group.deadline for group in self._groups.values() if group.group_id not in chosen]
        last_deadline = self._groups[batch[-1].group.group_id].deadline
        for deadline in range(self._weights_seq_no, last_deadline):
            num_urgent = sum(other <= deadline for other in left)
            if num_urgent > (deadline - self._weights_seq_no) * self._groups_per_batch:
                return True
        return False

    def _discard_stale(self) -> None:
        for group in list(self._groups.values()):
            if staleness(group, self._weights_seq_no) > self._max_staleness:
                self._discard(group, "stale")
                self._discarded_tasks.append(group.task)

    def _filter(self, group: _OpenGroup[FinishedT], finished: FinishedT) -> None:
        if len(self._filtered_lengths) == self._max_filtered_groups_per_batch:
            self._counters["zero_variance_groups_kept"] += 1
            return
        self._filtered_lengths.append(_mean_steps(finished.group))
        self._discard(group, "zero_variance")

    def _discard(self, group: _OpenGroup[FinishedT], reason: str) -> None:
        del self._groups[group.group_id]
        self._num_discarded += 1
        self._counters[f"groups_discarded_{reason}"] += 1

    def _lengths_of(self, batch: Sequence[FinishedT]) -> dict[str, float]:
        filtered, kept = self._filtered_lengths, [_mean_steps(finished.group) for finished in batch]
        return {
            "filtered_groups": float(len(filtered)),
            "filtered_mean_steps": sum(filtered) / len(filtered) if filtered else 0.0,
            "kept_mean_steps": sum(kept) / len(kept),
        }


def _mean_steps(group: TrajectoryGroup) -> float:
    return sum(len(trajectory.steps) for trajectory in group.trajectories) / len(group.trajectories)

"""`BatchCollector`: from trajectories, as they come, to batches of finished groups.

requests ──▶ env runners ──▶ trajectories ─▶ buffer ─ complete ─▶ finisher (thread) ─▶ buffer ─▶ batch
    ▲                                          │                      ▲     │
    └── tasks of discarded groups ─────────────┘                      └─ judge (if there is one)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.base import TaskSet
from serl.batch.finisher import GroupFinisher
from serl.batch.group import FinishedGroup
from serl.batch.repair import HintedRepair
from serl.buffer.group_buffer import GroupBuffer
from serl.buffer.task_sampler import TaskSampler, is_evaluation_group
from serl.config import ExperimentConfig
from serl.hindsight.judge.pool import JudgePool
from serl.hindsight.schedules import teaches
from serl.rollout.failures import FailureMonitor
from serl.rollout.prompt import PromptEncoder
from serl.rollout.report import FailedRollout
from serl.types import RolloutRequest, Trajectory

# Of all episodes that may be in flight: one bad moment that fails all of them does not end a run.
_WINDOW_OF_FAILURES = 4


class BatchCollector:
    """One thread drives it; no call waits. ``weights_seq_no`` is always the version being served.

    ``run_dir`` is where the judge's answers are kept. ``failures`` counts what fails, the judge's too.
    """

    def __init__(
        self, experiment: ExperimentConfig, tasks: TaskSet, encoder: PromptEncoder, run_dir: Path
    ) -> None:
        training = experiment.training
        self._hindsight = experiment.hindsight
        self._sampler = TaskSampler(tasks, training.group_size, experiment.seed)
        self._buffer: GroupBuffer[FinishedGroup] = GroupBuffer(
            group_size=training.group_size,
            groups_per_batch=training.groups_per_batch,
            max_staleness=training.max_staleness,
            filter_groups=training.filter_groups,
            max_filtered_groups_per_batch=training.max_filtered_groups_per_batch,
        )
        self._repair = HintedRepair(experiment, encoder)
        self._finisher = GroupFinisher(experiment, encoder)
        batch = training.groups_per_batch * training.group_size
        window = _WINDOW_OF_FAILURES * (training.max_staleness + 1) * batch
        self.failures = FailureMonitor(experiment.rollout.max_failed_share, window)
        self.judge = JudgePool(experiment, run_dir)
        self.judge.on_failure = self.failures.failed
        self._last_taken_at: int | None = None

    @property
    def batch_waits(self) -> bool:
        """Whether as many finished groups wait as the learners take at once."""
        return self._buffer.batch_waits

    def admit(self, weights_seq_no: int) -> list[RolloutRequest]:
        """The requests of as many new groups as may be in flight, and those that waited for their group."""
        requests = self._repair.take_released(self._buffer.owns)
        for _ in range(self._buffer.num_admissible(weights_seq_no)):
            group = self._sampler.next_group()
            self._buffer.admit(group)
            requests += self._repair.hold_back(group)
        return requests

    def add(self, trajectories: Sequence[Trajectory], weights_seq_no: int) -> None:
        """Takes trajectories in, those of evaluations aside; finishes the groups that they complete."""
        self.failures.episodes_finished(len(trajectories))
        for trajectory in trajectories:
            if is_evaluation_group(trajectory.group_id):
                continue
            self._repair.add(trajectory)
            group = self._buffer.add(trajectory)
            if group is not None:
                self._finisher.submit(group, weights_seq_no)
        self._file_finished(weights_seq_no)

    def replace(self, failures: Sequence[FailedRollout]) -> list[RolloutRequest]:
        """The requests to play instead of those that failed, where their groups are still waited for."""
        self.failures.episodes_failed(failures)
        of_training = [failure for failure in failures if not failure.request.evaluation]
        replacements = [self._buffer.fail(failure.request, failure.reason) for failure in of_training]
        return [request for request in replacements if request is not None]

    def take_batch(self, weights_seq_no: int) -> list[FinishedGroup] | None:
        """The groups of the next update, or None while there are too few or a judge still speaks.

        Raises what finishing a group raised, and JudgeError (see `JudgePool`).
        """
        self._file_finished(weights_seq_no)
        batch = self._buffer.take_batch(
            weights_seq_no, lambda groups: self._is_judged(groups, weights_seq_no)
        )
        self._requeue_discarded()
        if batch is not None:
            self._last_taken_at = weights_seq_no
            self.judge.end_wait(weights_seq_no, self._buffer.owns)
        return batch

    def metrics(self) -> dict[str, float]:
        """Those of the buffer and of the judge."""
        buffer = {f"buffer/{name}": value for name, value in self._buffer.metrics().items()}
        return buffer | self.judge.metrics()

    def describe(self) -> str:
        """One line for whoever waits for a batch."""
        return self._buffer.describe()

    def get_state(self) -> dict[str, Any]:
        """JSON-ready: positions and counters; groups in flight count as tasks to be played again."""
        return {"sampler": self._sampler.get_state(), "buffer": self._buffer.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes from `get_state`; what is in flight is given up. Raises ValueError if tasks differ."""
        self._repair.forget()
        self._finisher.forget()
        self.judge.forget()
        self._last_taken_at = None
        self._sampler.set_state(state["sampler"])
        self._buffer.set_state(state["buffer"])
        self._requeue_discarded()

    def close(self) -> None:
        self._finisher.close()
        self.judge.close()

    def _file_finished(self, weights_seq_no: int) -> None:
        """Moves groups on: the finished to the buffer and to the judge, the judged to their evidence."""
        for finished in self._finisher.take_finished():
            if self._buffer.file(finished) and self.judge.is_asked and finished.context_counts is None:
                updating = weights_seq_no == self._last_taken_at
                earliest = weights_seq_no + updating + self._buffer.num_batches_before(finished.group_id)
                self.judge.submit(finished.group, finished.taught_trajectories, earliest)
        if self.judge.is_asked:
            for group_id, texts in self.judge.take_answered().items():
                finished = self._buffer.ready_group(group_id)
                if finished is not None:
                    self._finisher.submit_evidence(finished, texts)

    def _is_judged(self, groups: Sequence[FinishedGroup], weights_seq_no: int) -> bool:
        """Whether the batch ``groups`` need not wait for a judge, or for evidence of what he said."""
        if not self.judge.is_asked or not teaches(self._hindsight, weights_seq_no):
            return True
        waiting = [group.group_id for group in groups if group.context_counts is None]
        if waiting:
            self.judge.wait_for(waiting)
        return not waiting

    def _requeue_discarded(self) -> None:
        for task in self._buffer.take_discarded_tasks():
            self._sampler.requeue(task)

"""`SERLLearnerGroup`: the learners as one, for the algorithm's loop.

RLlib's own asynchronous update is not used: it drops the call of a learner that is busy, and the others then
wait for it in a collective. Here an update starts on all learners or on none, every answer is looked at, and
the first failure of any of them is a `LearnerError`; `start` puts new ones in their place.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner_group import LearnerGroup

from serl.batch.packing import plan_update
from serl.batch.rows import TrainingRows
from serl.config import ExperimentConfig
from serl.durable_files import FileDigest
from serl.learner.actors import end_learners, gathered, start_learners
from serl.learner.errors import LearnerError
from serl.learner.records import untrained_records
from serl.learner.report import LearnerReport, combine_reports
from serl.learner.teacher import context_free_rows
from serl.no_pickles import NoPickles
from serl.private.rllib import (
    begin_remote_group,
    local_learner,
    remote_learners,
    set_remote_learners,
)
from serl.serving.weights import Broadcast
from serl.types import TeacherRecords

_PING_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way. ``answers`` are the learners' results, or references to them, in their order."""

    what: str
    limit: str
    deadline: float
    answers: list[Any]


@dataclass(frozen=True, slots=True)
class UpdateHandle:
    """An update under way. ``metrics`` and ``records`` are what is known of it before learners answer."""

    call: Call
    metrics: dict[str, float]
    records: TeacherRecords


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A finished update: ``metrics`` over the whole batch and all learners; ``records`` of recorded rows."""

    metrics: dict[str, float]
    records: TeacherRecords = field(default_factory=dict)


class SERLLearnerGroup(NoPickles, LearnerGroup):
    """``num_learners`` remote learners, or one in this process if that is 0.

    What a learner raises becomes a `LearnerError`; a local learner's errors come as they are.
    """

    def __init__(self, *, config: Any, module_spec: Any = None, placement_group: Any = None) -> None:
        self._experiment: ExperimentConfig = config.experiment
        self._in_flight: UpdateHandle | None = None
        self._placement_group = placement_group
        if config.num_learners == 0:
            super().__init__(config=config, module_spec=module_spec)
        else:
            begin_remote_group(self, config, module_spec or config.get_multi_rl_module_spec())
            self.start()

    def start(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Starts remote learners in the place of those there were; raises as `start_learners` does."""
        self.shutdown()
        self._in_flight = None
        timeout_s = self._experiment.learner.start_timeout_s
        learners = start_learners(
            self.config, self._module_spec, self._placement_group, timeout_s, should_stop
        )
        set_remote_learners(self, learners)

    def shutdown(self) -> None:
        """Ends the learners; nothing of theirs is saved."""
        if self.is_local:
            super().shutdown()
            return
        # RLlib calls this of a group that is forgotten too, be it after the cluster's end: any call of Ray
        # would then start another one.
        if ray.is_initialized():
            end_learners(remote_learners(self))
        set_remote_learners(self, [])

    def start_update(self, rows: TrainingRows, weights_seq_no: int) -> UpdateHandle:
        """Starts training on ``rows``; returns at once with remote learners, at the end with a local one.

        ``weights_seq_no`` are the weights that are trained. Raises LearnerError unless every learner is alive
        and idle.
        """
        if self._in_flight is not None:
            raise LearnerError(f"{self._in_flight.call.what} has not been polled to its end")
        started = time.monotonic()
        layout, *_ = self._call("layout", timeout_s=_PING_TIMEOUT_S)
        settings, seed = self._experiment.learner, (self._experiment.seed, weights_seq_no)
        train_every_row = self._experiment.loss.trains_every_row
        plans = plan_update(
            rows,
            num_learners=max(1, settings.num_learners),
            num_minibatches=settings.num_minibatches,
            num_epochs=settings.num_epochs,
            micro_batch_tokens=settings.micro_batch_tokens,
            seed=seed,
            train_every_row=train_every_row,
            context_free_rows=context_free_rows(rows, self._experiment.hindsight, seed),
            as_trees=layout == "tree",
        )
        metrics = {"seconds_plan": time.monotonic() - started}
        answers = self._start("update_policy", [(plan, weights_seq_no) for plan in plans])
        limit = f"learner.update_timeout_s = {settings.update_timeout_s:g} s"
        call = Call(f"update {weights_seq_no}", limit, started + settings.update_timeout_s, answers)
        self._in_flight = UpdateHandle(call, metrics, untrained_records(rows, train_every_row))
        return self._in_flight

    def poll_update(self, handle: UpdateHandle, timeout_s: float) -> UpdateResult | None:
        """The result of ``handle``, or None if it is not there within ``timeout_s``.

        Raises LearnerError if a learner failed, or after ``learner.update_timeout_s`` since the start.
        """
        if handle is not self._in_flight:
            raise LearnerError(f"{handle.call.what} is not under way")
        reports: list[LearnerReport] | None = self._poll(handle.call, timeout_s)
        if reports is None:
            return None
        self._in_flight = None
        records = dict(handle.records)
        for report in reports:
            records |= report.records
        return UpdateResult(handle.metrics | update_metrics(reports), dict(sorted(records.items())))

    def start_publish(self, weights_seq_no: int) -> Call:
        """Starts sending the policy's weights to the deployment as ``weights_seq_no``."""
        # The publisher has the serving deadline and a better error; this one is for a learner that hangs.
        limit_s = 2.0 * self._experiment.serving.update_timeout_s
        started = time.monotonic()
        answers = self._start("publish_weights", [(weights_seq_no,)] * max(1, len(self)))
        limit = f"2 · serving.update_timeout_s = {limit_s:g} s"
        return Call(f"the broadcast of weights {weights_seq_no}", limit, started + limit_s, answers)

    def poll_publish(self, call: Call, timeout_s: float) -> Broadcast | None:
        """What the broadcast took once all replicas serve the weights; None if not within ``timeout_s``.

        Raises LearnerError if a learner fails or not all replicas load the weights in time.
        """
        results = self._poll(call, timeout_s)
        return None if results is None else next(result for result in results if result is not None)

    def publish_weights(self, weights_seq_no: int) -> Broadcast:
        """`start_publish`, and `poll_publish` to the end."""
        call = self.start_publish(weights_seq_no)
        stats = None
        while stats is None:
            stats = self.poll_publish(call, timeout_s=1.0)
        return stats

    def saved_bytes(self) -> int:
        """The size of what `save` is about to write."""
        return max(self._call("saved_bytes", timeout_s=_PING_TIMEOUT_S))

    def save(self, directory: Path, timeout_s: float) -> dict[str, FileDigest]:
        """`start_save`, and the answer's answer."""
        return self.start_save(directory, timeout_s)()

    def start_save(self, directory: Path, timeout_s: float) -> Callable[[], dict[str, FileDigest]]:
        """Copies the learners' state. The answer, which any thread may call, writes the copy.

        ``policy/`` and ``learner/`` are written below ``directory`` while the learners go on; it returns what
        each file holds, and no other save may start before. Both raise LearnerError if learners fail, and the
        answer OSError if files cannot be written.
        """
        deadline = time.monotonic() + timeout_s
        self._call("copy_state", timeout_s=timeout_s)
        folder = str(directory.resolve())
        if self.is_local:
            return functools.partial(local_learner(self).write_state, folder)
        answers = self._start("write_state", [(folder,)] * len(self))
        call = Call("write_state", f"checkpoint.timeout_s = {timeout_s:g} s", deadline, answers)
        return functools.partial(self._written, call)

    def load(self, directory: Path, timeout_s: float) -> None:
        """Resumes from `save`, with any number of learners; raises LearnerError if that fails."""
        self._call("load", str(directory.resolve()), timeout_s=timeout_s)

    def get_state(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Nothing: weights reach the samplers by `publish_weights` and checkpoints by `save`.

        RLlib asks for them while it sets an algorithm up, and would bring all of them into its process.
        """
        return {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: {}}}

    def _written(self, call: Call) -> dict[str, FileDigest]:
        written: list[dict[str, FileDigest]] | None = None
        try:
            while written is None:
                written = self._poll(call, timeout_s=1.0)
        except LearnerError as error:
            if isinstance(error.__cause__, OSError):
                raise OSError(str(error)) from error
            raise
        return {name: digest for files in written for name, digest in files.items()}

    def _poll(self, call: Call, timeout_s: float) -> list[Any] | None:
        wait_s = min(timeout_s, max(call.deadline - time.monotonic(), 0.0))
        results = self._gathered(call.answers, wait_s, call.what)
        if results is None and time.monotonic() >= call.deadline:
            raise LearnerError(f"{call.what} took longer than {call.limit}")
        return results

    def _call(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        """``method`` on every learner; all results, in order."""
        answers = self._start(method, [arguments] * max(1, len(self)))
        results = self._gathered(answers, timeout_s, method)
        if results is None:
            raise LearnerError(f"{method}: not all of {len(self)} learners finished within {timeout_s:g} s")
        return results

    def _start(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.is_local:
            return [getattr(local_learner(self), method)(*arguments[0])]
        return [
            getattr(learner, method).remote(*own)
            for learner, own in zip(remote_learners(self), arguments, strict=True)
        ]

    def _gathered(self, answers: list[Any], timeout_s: float, what: str) -> list[Any] | None:
        return answers if self.is_local else gathered(answers, timeout_s, what)


def update_metrics(reports: Sequence[LearnerReport]) -> dict[str, float]:
    """The metrics of one update from the reports of all learners.

    ``learner_tokens_per_s`` counts prompt and response tokens of the trained rows, once per epoch, over the
    seconds of forward, backward and optimizer; ``teacher_tokens_per_s`` those that the teacher scored, over
    its seconds. ``saved_token_share`` is what did not have to be computed of the former.
    """
    metrics = combine_reports(reports)
    seconds = metrics.get("seconds_forward_backward", 0.0) + metrics.get("seconds_optimizer", 0.0)
    num_trained = metrics.get("num_trained_tokens", 0.0)
    metrics["learner_tokens_per_s"] = num_trained / seconds if seconds else 0.0
    if num_trained:
        metrics["saved_token_share"] = 1.0 - metrics["num_computed_tokens"] / num_trained
    if metrics.get("num_teacher_tokens"):
        metrics["teacher_tokens_per_s"] = metrics["num_teacher_tokens"] / metrics["seconds_teacher"]
    return metrics

"""`SERLLearnerGroup`: the learners as one, for the algorithm's loop.

RLlib's own asynchronous update is not used: it drops the call of a learner that is busy, and the others then
wait for it in a collective. Here an update starts on all learners or on none, every answer is looked at, and
the first failure of any of them is a `LearnerError`: the trial fails and resumes from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner_group import LearnerGroup

from serl.algorithm_config import SERLConfig
from serl.batch.packing import LearnerPlan, plan_update
from serl.batch.rows import build_rows
from serl.learner.early_scores import EarlyScores
from serl.learner.learner import SERLLearner
from serl.learner.records import untrained_records
from serl.learner.report import LearnerReport, combine_reports
from serl.learner.teacher import context_free_rows
from serl.rollout.prompt import PromptEncoder
from serl.serving.weights import BroadcastStats
from serl.types import TeacherRecord, TrajectoryGroup

_PING_TIMEOUT_S = 30.0


class LearnerError(RuntimeError):
    """A learner failed, died, or did not answer in time; the text says which one and doing what."""


@dataclass(slots=True)
class UpdateHandle:
    """An update under way. ``answers`` are the learners' reports, or references to them, in their order.

    ``records`` are those of recorded steps that no learner was given.
    """

    weights_seq_no: int
    deadline: float
    answers: list[Any]
    sample_metrics: dict[str, float]
    records: list[TeacherRecord]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A finished update: ``metrics`` over the whole batch and all learners.

    ``teacher_records``: one for each step of the recorded trajectories, by trajectory and step.
    """

    weights_seq_no: int
    metrics: dict[str, float]
    teacher_records: list[TeacherRecord] = field(default_factory=list)


class SERLLearnerGroup(LearnerGroup):
    """``num_learners`` remote learners, or one in this process if that is 0.

    What a learner raises becomes a `LearnerError`; a local learner's errors come as they are.
    """

    config: SERLConfig
    _learner: SERLLearner
    _workers: list[Any]

    def __init__(self, *, config: SERLConfig, module_spec: Any = None, placement_group: Any = None) -> None:
        super().__init__(config=config, module_spec=module_spec, placement_group=placement_group)
        self._experiment = config.experiment
        self._encoder = PromptEncoder.load(config.model_dir)
        self._in_flight: UpdateHandle | None = None
        self._early_scores = EarlyScores(config.experiment, self._encoder)
        self._scoring: tuple[list[LearnerPlan], list[Any]] | None = None

    def score_early(self, groups: Sequence[TrajectoryGroup], weights_seq_no: int) -> None:
        """Has the teacher score complete ``groups`` that update ``weights_seq_no`` may train on.

        For the time in which learners wait for a batch; returns at once with remote learners. Groups that are
        scored already, or being scored, are not scored again. Raises LearnerError if a learner failed, or
        during an update.
        """
        if self._in_flight is not None:
            raise LearnerError(f"update {self._in_flight.weights_seq_no} is under way")
        if not self._collect_scores(timeout_s=0.0):
            return
        plans = self._early_scores.plans(groups, weights_seq_no, max(1, len(self)))
        if plans:
            self._scoring = plans, self._start("score_teacher", [(plan, weights_seq_no) for plan in plans])

    def start_update(
        self,
        groups: Sequence[TrajectoryGroup],
        weights_seq_no: int,
        judge_texts: Mapping[str, str | None] | None = None,
        recorded: Collection[str] = frozenset(),
    ) -> UpdateHandle:
        """Starts training on ``groups``; returns at once with remote learners, at the end with a local one.

        ``weights_seq_no`` counts the updates before this one; ``judge_texts`` is what a judge said, by
        trajectory id; the trajectories ``recorded`` get a `TeacherRecord` for each step. Raises LearnerError
        unless every learner is alive and idle.
        """
        if self._in_flight is not None:
            raise LearnerError(f"update {self._in_flight.weights_seq_no} has not been polled to its end")
        started = time.monotonic()
        limit_s = self._experiment.learner.update_timeout_s
        if not self._collect_scores(limit_s):
            raise LearnerError(f"the teacher's early scores took longer than {limit_s:g} s")
        self._check_idle()
        samples, metrics = build_rows(groups, self._experiment, self._encoder, weights_seq_no, judge_texts)
        metrics |= self._early_scores.apply(samples, weights_seq_no)
        settings, seed = self._experiment.learner, (self._experiment.seed, weights_seq_no)
        train_every_row = self._experiment.loss.trains_every_row
        plans = plan_update(
            samples,
            num_learners=max(1, settings.num_learners),
            num_minibatches=settings.num_minibatches,
            num_epochs=settings.num_epochs,
            micro_batch_tokens=settings.micro_batch_tokens,
            seed=seed,
            train_every_row=train_every_row,
            context_free_rows=context_free_rows(samples, self._experiment.hindsight, recorded, seed),
        )
        metrics["seconds_samples"] = time.monotonic() - started
        deadline = started + settings.update_timeout_s
        records = untrained_records(samples, recorded, train_every_row)
        answers = self._start("update_policy", [(plan, weights_seq_no, recorded) for plan in plans])
        self._in_flight = UpdateHandle(weights_seq_no, deadline, answers, metrics, records)
        return self._in_flight

    def poll_update(self, handle: UpdateHandle, timeout_s: float) -> UpdateResult | None:
        """The result of ``handle``, or None if it is not there within ``timeout_s``.

        Raises LearnerError if a learner failed, or after ``learner.update_timeout_s`` since the start.
        """
        if handle is not self._in_flight:
            raise LearnerError(f"update {handle.weights_seq_no} is not under way")
        what = f"update {handle.weights_seq_no}"
        wait_s = min(timeout_s, max(handle.deadline - time.monotonic(), 0.0))
        reports: list[LearnerReport] | None = self._gathered(handle.answers, wait_s, what)
        if reports is None:
            if time.monotonic() >= handle.deadline:
                limit = self._experiment.learner.update_timeout_s
                raise LearnerError(f"{what} took longer than learner.update_timeout_s = {limit:g} s")
            return None
        self._in_flight = None
        records = handle.records + [record for report in reports for record in report.records]
        records.sort(key=lambda record: (record.trajectory_id, record.step_index))
        return UpdateResult(handle.weights_seq_no, handle.sample_metrics | update_metrics(reports), records)

    def publish_weights(self, weights_seq_no: int) -> BroadcastStats:
        """Sends the policy's weights to the deployment as ``weights_seq_no``, waiting for the replicas.

        Raises LearnerError if a learner fails or not all replicas load them in time.
        """
        # The publisher has the serving deadline and a better error; this one is for a learner that hangs.
        timeout_s = 2.0 * self._experiment.serving.update_timeout_s
        results = self._call("publish_weights", weights_seq_no, timeout_s=timeout_s)
        stats = [result for result in results if result is not None]
        assert len(stats) == 1
        return stats[0]

    def save(self, directory: Path, timeout_s: float) -> None:
        """Writes ``policy/`` and ``learner/`` below ``directory``; raises LearnerError if that fails."""
        self._call("save", str(directory.resolve()), timeout_s=timeout_s)

    def load(self, directory: Path, timeout_s: float) -> None:
        """Goes on from `save`, with any number of learners; raises LearnerError if that fails."""
        self._scoring = None
        self._early_scores.clear()
        self._call("load", str(directory.resolve()), timeout_s=timeout_s)

    def get_state(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Nothing: weights reach the samplers by `publish_weights` and checkpoints by `save`.

        RLlib asks for them while it sets an algorithm up, and would bring all of them into its process.
        """
        return {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: {}}}

    def _collect_scores(self, timeout_s: float) -> bool:
        """Takes in early scores; whether none are being made any more."""
        if self._scoring is not None:
            plans, answers = self._scoring
            results = self._gathered(answers, timeout_s, "scoring")
            if results is None:
                return False
            self._early_scores.add(plans, results)
            self._scoring = None
        return True

    def _check_idle(self) -> None:
        self._call("ping", timeout_s=_PING_TIMEOUT_S)

    def _call(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        """``method`` on every learner; all results, in order."""
        answers = self._start(method, [arguments] * max(1, len(self)))
        results = self._gathered(answers, timeout_s, method)
        if results is None:
            raise LearnerError(f"{method}: not all of {len(self)} learners finished within {timeout_s:g} s")
        return results

    def _start(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.is_local:
            return [getattr(self._learner, method)(*arguments[0])]
        return [
            getattr(worker, method).remote(*own) for worker, own in zip(self._workers, arguments, strict=True)
        ]

    def _gathered(self, answers: list[Any], timeout_s: float, what: str) -> list[Any] | None:
        """All results, or None if they are not there within ``timeout_s``; LearnerError at the first failure.

        The first: a learner that waits in a collective for a failed one never answers.
        """
        if self.is_local:
            return answers
        results: dict[Any, Any] = {}
        deadline = time.monotonic() + timeout_s
        pending = list(answers)
        while pending:
            wait_s = max(deadline - time.monotonic(), 0.0)
            ready, pending = ray.wait(pending, num_returns=1, timeout=wait_s, fetch_local=False)
            for answer in ready:
                results[answer] = self._result(answer, answers.index(answer), what)
            if not ready:
                return None
        return [results[answer] for answer in answers]

    @staticmethod
    def _result(answer: Any, learner_index: int, what: str) -> Any:
        try:
            return ray.get(answer, timeout=_PING_TIMEOUT_S)
        except (RayTaskError, RayActorError, GetTimeoutError) as error:
            raise LearnerError(f"learner {learner_index} failed in {what}: {error}") from error


def update_metrics(reports: Sequence[LearnerReport]) -> dict[str, float]:
    """The metrics of one update from the reports of all learners.

    ``learner_tokens_per_s`` counts prompt and response tokens of the trained rows, once per epoch, over the
    seconds of forward, backward and optimizer; ``teacher_tokens_per_s`` those that the teacher scored, over
    its seconds.
    """
    metrics = combine_reports(reports)
    seconds = metrics.get("seconds_forward_backward", 0.0) + metrics.get("seconds_optimizer", 0.0)
    metrics["learner_tokens_per_s"] = metrics.get("num_trained_tokens", 0.0) / seconds if seconds else 0.0
    if metrics.get("num_teacher_tokens"):
        metrics["teacher_tokens_per_s"] = metrics["num_teacher_tokens"] / metrics["seconds_teacher"]
    return metrics

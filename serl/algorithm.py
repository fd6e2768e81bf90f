"""`SERL(Algorithm)`: the loop and nothing else.

    task sampler ─ groups ─▶ env runner pool ─ trajectories ─▶ group buffer ─ batch ─▶ learner group
         ▲                        │  ▲                              │                        │
         └── requeued tasks ──────┼──┼──────────────────────────────┘                        │
                                  ▼  │ ids                                                   │
                           policy deployment  ◀──────────── weights, weights_seq_no + 1 ─────┘

One training iteration is one learner update. Rollouts go on while the learner updates, and so does the judge,
if there is one (`serl.hindsight.judge.pool`); while the learner waits for a batch, its teacher scores the
groups that are complete (`serl.learner.early_scores`). The buffer admits a group only while it could still be
trained within ``training.max_staleness`` versions.
"""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from envs.registry import make_provider
from serl.algorithm_config import SERLConfig
from serl.batch.metrics import batch_metrics
from serl.buffer.group_buffer import GroupBuffer
from serl.buffer.task_sampler import TaskSampler, evaluation_requests, is_evaluation_group
from serl.evaluation import EvaluationResult, evaluation_result
from serl.hindsight.judge.pool import JudgePool
from serl.learner.learner_group import SERLLearnerGroup, UpdateHandle, UpdateResult
from serl.rollout.runner_pool import EnvRunnerPool, PoolReport
from serl.run.checkpoint import read_algorithm_state, write_algorithm_state
from serl.run.records import trajectories_to_record
from serl.serving.client import PolicyClient
from serl.serving.start import start_serving, stop_serving, wait_until_ready
from serl.types import RolloutRequest, TeacherRecord, Trajectory, TrajectoryGroup

logger = logging.getLogger(__name__)

_POLL_S = 0.05


class TrainingInterrupted(RuntimeError):
    """A stop was asked for; nothing of the last finished update is lost."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar shows inside an iteration."""

    phase: str
    episodes: int
    episodes_wanted: int
    env_steps: int
    response_tokens: int
    staleness: float
    seconds: float
    judged: int = 0
    judge_pending: int = 0


class SERL(Algorithm):
    """Asynchronous group-relative policy optimisation with selective hindsight distillation.

    Config: `SERLConfig.from_experiment`. Before the first `train()` a caller may set ``should_stop``
    (polled inside waits; `TrainingInterrupted` follows) and ``on_progress``. After it, ``last_recorded`` are
    the trajectories to be looked at and ``last_teacher_records`` what the learner made of their steps.
    """

    should_stop: Callable[[], bool] = staticmethod(lambda: False)
    on_progress: Callable[[Progress], None] = staticmethod(lambda progress: None)

    @classmethod
    def get_default_config(cls) -> SERLConfig:
        return SERLConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        assert isinstance(config, SERLConfig)
        self.experiment = experiment = config.experiment
        config = config.copy(copy_frozen=False)
        names = start_serving(experiment, config.model_dir, config.run_dir, instance=uuid.uuid4().hex[:8])
        config.serving_names = names
        config.make_policy = functools.partial(PolicyClient, names)
        config.freeze()
        self.config = config
        self._serving_names = names
        super().setup(config)
        wait_until_ready(self._serving_names, experiment.serving.start_timeout_s)

        provider = make_provider(experiment.env.name, experiment.env.args)
        self.train_tasks = provider.task_set(experiment.env.train_split)
        self.evaluation_tasks = provider.task_set(experiment.evaluation.split)
        training = experiment.training
        self._sampler = TaskSampler(self.train_tasks, training.group_size, experiment.seed)
        self._buffer = GroupBuffer(
            group_size=training.group_size,
            groups_per_batch=training.groups_per_batch,
            max_staleness=training.max_staleness,
            filter_groups=training.filter_groups,
            max_filtered_groups_per_batch=training.max_filtered_groups_per_batch,
            normalize_by_length=experiment.advantage.normalize_by_length,
        )
        assert self.env_runner_group is not None
        self._pool = EnvRunnerPool(self.env_runner_group, experiment.rollout.max_concurrent_episodes)
        self._judge = JudgePool(experiment, Path(config.run_dir))
        self._weights_seq_no = 0
        self._totals: Counter[str] = Counter()
        self.iteration_metrics: dict[str, float] = {}
        self.last_recorded: list[Trajectory] = []
        self.last_teacher_records: list[TeacherRecord] = []

    @property
    def weights_seq_no(self) -> int:
        """The version of the weights that the policy deployment serves; the number of updates so far."""
        return self._weights_seq_no

    @property
    def _learners(self) -> SERLLearnerGroup:
        assert isinstance(self.learner_group, SERLLearnerGroup)
        return self.learner_group

    def training_step(self) -> None:
        started = time.monotonic()
        deadline = started + self.experiment.training.iteration_timeout_s
        counters: Counter[str] = Counter()
        update: tuple[UpdateHandle, list[TrajectoryGroup]] | None = None
        result: UpdateResult | None = None
        waited_for_batch = 0.0
        while result is None:
            if update is None:
                self._check_not_stopped("a batch of complete groups")
            self._check_deadline(deadline, "a batch of complete groups" if update is None else "the learners")
            self._admit_groups()
            self._poll_runners(counters)
            if update is None:
                batch = self._buffer.take_batch(self._weights_seq_no, self._has_judgements)
                self._requeue_discarded()
                if batch is not None:
                    waited_for_batch = time.monotonic() - started
                    update = self._start_update(batch), batch
                else:
                    self._learners.score_early(self._buffer.next_groups(), self._weights_seq_no)
            else:
                result = self._learners.poll_update(update[0], timeout_s=_POLL_S)
            self._show_progress(counters, started, "rollout" if update is None else "update")
        assert update is not None
        broadcast = self._learners.publish_weights(self._weights_seq_no + 1)
        metrics = batch_metrics(update[1], self._weights_seq_no)
        self._weights_seq_no += 1
        self.last_teacher_records = result.teacher_records
        seconds = time.monotonic() - started
        metrics |= {f"learner/{name}": value for name, value in result.metrics.items()}
        metrics |= {f"buffer/{name}": value for name, value in self._buffer.metrics().items()}
        metrics |= {f"broadcast/{name}": float(value) for name, value in asdict(broadcast).items()}
        metrics |= self._judge.metrics()
        metrics |= self._throughput(counters, seconds) | {
            "time/iteration_s": seconds,
            "time/wait_for_batch_s": waited_for_batch,
            "weights_seq_no": float(self._weights_seq_no),
        }
        self.iteration_metrics = metrics
        for name, value in metrics.items():
            self.metrics.log_value(tuple(name.split("/")), value, window=1)

    def _start_update(self, batch: list[TrajectoryGroup]) -> UpdateHandle:
        settings = self.experiment.logging
        self.last_recorded = trajectories_to_record(
            batch,
            self._weights_seq_no + 1,
            settings.trajectories_per_iteration,
            settings.trajectories_interval,
        )
        recorded = frozenset(trajectory.trajectory_id for trajectory in self.last_recorded)
        texts = self._judge.take(batch, self._weights_seq_no, self._buffer.owns)
        return self._learners.start_update(batch, self._weights_seq_no, texts, recorded)

    def run_evaluation(self) -> EvaluationResult:
        """Plays the evaluation, every task once, on the weights being served.

        Training episodes already with a runner go on; no update happens meanwhile. Raises TimeoutError
        after ``evaluation.timeout_s``.
        """
        settings = self.experiment.evaluation
        evaluation = evaluation_requests(self.evaluation_tasks, settings.num_tasks, self.experiment.seed)
        started = time.monotonic()
        deadline = started + settings.timeout_s
        waiting = self._pool.withdraw_queued()
        self._pool.submit(evaluation)
        pending = {(request.group_id, request.rollout_index) for request in evaluation}
        finished: list[Trajectory] = []
        counters: Counter[str] = Counter()
        while pending:
            waiting_for = f"{len(pending)} of {len(evaluation)} evaluation episodes"
            self._check_not_stopped(waiting_for)
            self._check_deadline(deadline, waiting_for)
            report = self._poll_runners(counters)
            for trajectory in report.trajectories:
                if (trajectory.group_id, trajectory.rollout_index) in pending:
                    pending.discard((trajectory.group_id, trajectory.rollout_index))
                    finished.append(trajectory)
            for failure in report.failures:
                key = (failure.request.group_id, failure.request.rollout_index)
                if failure.request.evaluation and key in pending:
                    if failure.reason == "env_runner_died":
                        self._pool.submit([failure.request], urgent=True)
                    else:
                        pending.discard(key)
            self.on_progress(
                Progress(
                    phase="evaluation",
                    episodes=len(finished),
                    episodes_wanted=len(evaluation),
                    env_steps=counters["env_steps"],
                    response_tokens=counters["response_tokens"],
                    staleness=0.0,
                    seconds=time.monotonic() - started,
                )
            )
        self._pool.submit(waiting)
        return evaluation_result(finished, len(evaluation), self._weights_seq_no, time.monotonic() - started)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes policy, learner state and `algorithm.json`, the last one last."""
        directory = Path(checkpoint_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._learners.save(directory, timeout_s=self.experiment.checkpoint.timeout_s)
        write_algorithm_state(
            directory,
            {
                "iteration": self.iteration,
                "weights_seq_no": self._weights_seq_no,
                "sampler": self._sampler.get_state(),
                "buffer": self._buffer.get_state(),
                "totals": dict(self._totals),
                "train_tasks_hash": self.train_tasks.content_hash,
            },
        )

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on from `save_checkpoint`: the tasks of groups that were in flight are played again."""
        state = read_algorithm_state(Path(checkpoint_dir))
        if state["train_tasks_hash"] != self.train_tasks.content_hash:
            raise ValueError(
                f"{checkpoint_dir} was trained on other tasks: content hash "
                f"{state['train_tasks_hash'][:12]}…, the configured tasks have "
                f"{self.train_tasks.content_hash[:12]}…"
            )
        self._learners.load(Path(checkpoint_dir), timeout_s=self.experiment.checkpoint.timeout_s)
        self._iteration = state["iteration"]
        self._weights_seq_no = state["weights_seq_no"]
        self._sampler.set_state(state["sampler"])
        self._buffer.set_state(state["buffer"])
        self._requeue_discarded()
        self._totals = Counter(state["totals"])
        if self._weights_seq_no > 0:
            self._learners.publish_weights(self._weights_seq_no)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Nothing: the pool brings runners back, and a runner is complete with its constructor's arguments.

        RLlib's own way would bring the learners' whole state here first.
        """
        return []

    def cleanup(self) -> None:
        super().cleanup()
        stop_serving(self._serving_names)
        self._judge.close()

    def _admit_groups(self) -> None:
        for _ in range(self._buffer.num_admissible(self._weights_seq_no)):
            requests = self._sampler.next_group()
            self._buffer.admit(requests)
            self._pool.submit(requests)

    def _poll_runners(self, counters: Counter[str]) -> PoolReport:
        report = self._pool.poll(_POLL_S)
        counters.update(report.counters)
        self._totals.update(report.counters)
        for trajectory in report.trajectories:
            if not is_evaluation_group(trajectory.group_id):
                group = self._buffer.add(trajectory)
                if group is not None:
                    batches_before = self._buffer.num_batches_before(group.group_id)
                    self._judge.submit(group, self._weights_seq_no, batches_before)
        for failure in report.failures:
            counters[f"failed_{failure.reason}"] += 1
            if failure.reason == "request_refused":
                raise RuntimeError(f"the engine refuses a request: {failure.message}")
            if not failure.request.evaluation:
                self._replay(failure.request, failure.reason)
        return report

    def _has_judgements(self, batch: Sequence[TrajectoryGroup]) -> bool:
        return self._judge.has_answers(batch, self._weights_seq_no)

    def _replay(self, request: RolloutRequest, reason: str) -> None:
        replacement = self._buffer.fail(request, reason)
        if replacement is not None:
            self._pool.submit([replacement], urgent=True)

    def _requeue_discarded(self) -> None:
        for task in self._buffer.take_discarded_tasks():
            self._sampler.requeue(task)

    def _check_not_stopped(self, waiting_for: str) -> None:
        """Not called during an update, when the learners are ahead of the counters."""
        if self.should_stop():
            raise TrainingInterrupted(f"stopped while waiting for {waiting_for}")

    def _check_deadline(self, deadline: float, waiting_for: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited too long for {waiting_for}; {self._pool.num_running} episodes run, "
                f"{self._pool.num_queued} wait; {self._buffer.describe()}"
            )

    def _throughput(self, counters: Counter[str], seconds: float) -> dict[str, float]:
        metrics = {f"runners/{name}": float(value) for name, value in counters.items()}
        metrics["throughput/env_steps_per_s"] = counters["env_steps"] / seconds
        metrics["throughput/response_tokens_per_s"] = counters["response_tokens"] / seconds
        metrics["throughput/prompt_tokens_per_s"] = counters["prompt_tokens"] / seconds
        return metrics | {f"total/{name}": float(value) for name, value in self._totals.items()}

    def _show_progress(self, counters: Counter[str], started: float, phase: str) -> None:
        training = self.experiment.training
        buffer = self._buffer.metrics()
        self.on_progress(
            Progress(
                phase=phase,
                episodes=counters["episodes_finished"],
                episodes_wanted=training.groups_per_batch * training.group_size,
                env_steps=counters["env_steps"],
                response_tokens=counters["response_tokens"],
                staleness=buffer.get("staleness_mean", 0.0),
                seconds=time.monotonic() - started,
                judged=self._judge.num_done,
                judge_pending=self._judge.num_pending,
            )
        )

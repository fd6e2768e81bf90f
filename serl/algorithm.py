"""`SERL`: the loop.

    task sampler ─ requests ─▶ env runner pool ─ trajectories ─▶ batch collector ─ rows ─▶ learner group
         ▲                        │  ▲                              │                        │
         └── requeued tasks ──────┼──┼──────────────────────────────┘                        │
                                  ▼  │ ids                                                   │
                           policy deployment  ◀──────────── weights, weights_seq_no + 1 ─────┘

One training iteration is one learner update, and ``weights_seq_no`` counts them. Whatever the loop waits for
(a batch, the learners, the replicas), it goes on polling the env runners, so rollouts never stop; groups are
finished in a thread (`serl.batch.finisher`), and a judge is asked beside it. The buffer admits a group only
while it could still be trained within ``training.max_staleness`` versions.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from envs.registry import make_provider
from serl.algorithm_config import SERLConfig
from serl.algorithm_state import read_algorithm_state, require_same_tasks
from serl.batch.assemble import assemble, require_rows, trajectories_to_record
from serl.batch.collector import BatchCollector
from serl.batch.group import FinishedGroup
from serl.batch.metrics import batch_metrics
from serl.buffer.task_sampler import evaluation_requests
from serl.evaluation import EvaluationEpisodes, EvaluationResult, evaluation_result
from serl.gateway.client import GatewayClient
from serl.gateway.start import start_gateway, wait_until_gateway_ready
from serl.iteration import Iteration, Progress, TrainingInterrupted
from serl.learner.learner_group import SERLLearnerGroup, UpdateResult
from serl.manifest import complete_checkpoint, require_free_space
from serl.models.resolve import resolve_model
from serl.private.rllib import set_iteration
from serl.rllib.interface import RLlibInterface
from serl.rllib.results import under_rllib_names
from serl.rollout.prompt import PromptEncoder
from serl.rollout.runner_pool import EnvRunnerPool, PoolReport
from serl.rollout.scaling import PoolScaler
from serl.run_folder import CONFIG, config_yaml, create_run_folder
from serl.serving.client import PolicyClient
from serl.serving.start import give_up_serving, start_serving, stop_serving, wait_until_ready
from serl.serving.weights import BroadcastStats
from serl.types import TeacherRecords, Trajectory
from serl.watched_actors import WatchedActors

T = TypeVar("T")

_POLL_S = 0.05


class SERL(RLlibInterface):
    """Asynchronous group-relative policy optimisation with selective hindsight distillation.

    Before the first `train()` a caller may set ``should_stop`` (polled inside waits; `TrainingInterrupted`
    follows) and ``on_progress``. After it, ``last_recorded`` are the trajectories to be looked at and
    ``last_teacher_records`` what the learner made of their steps. While it ``is_updating``, from an update's
    start until its weights are published, learners are ahead of the counters: no checkpoint would fit.
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
        if self.is_actor() and Path(config.start_dir).is_dir():  # Tune has gone to the trial's folder
            os.chdir(config.start_dir)
        config.model_dir = config.model_dir or str(resolve_model(experiment.model.path))
        config.run_dir = config.run_dir or self._new_run_dir()
        self.run_dir = Path(config.run_dir)
        self.evaluation_interval = experiment.evaluation.interval
        self.iteration_metrics = {}
        self._weights_seq_no = 0
        self.is_updating = False
        provider = make_provider(experiment.env.name, experiment.env.args)
        self.train_tasks = provider.task_set(experiment.env.train_split)
        self.evaluation_tasks = provider.task_set(experiment.evaluation.split)
        names = config.serving_names or start_serving(experiment, config.model_dir, config.run_dir)
        config.serving_names = self._serving_names = names
        config.make_policy = functools.partial(PolicyClient, names)
        try:
            gateway = start_gateway(experiment, config.model_dir, config.run_dir, names)
            config.make_gateway = gateway and functools.partial(GatewayClient, gateway)
            config.freeze()
            self.config = config
            super().setup(config)
            wait_until_ready(names, experiment.serving.start_timeout_s)
            wait_until_gateway_ready(gateway, experiment.serving.start_timeout_s)
        except Exception:
            give_up_serving(names)
            raise
        assert self.env_runner_group is not None
        self._pool = EnvRunnerPool(self.env_runner_group, experiment.rollout.max_concurrent_episodes)
        encoder = PromptEncoder.load(config.model_dir)
        self._collector = BatchCollector(experiment, self.train_tasks, encoder, Path(config.run_dir))
        self._actors = WatchedActors(experiment, names)
        self._actors.watch_env_runners(self._pool)
        self._scaler = PoolScaler(experiment.rollout, self._pool)
        self._actors.watch_learners(self._learners)
        self.failures = self._collector.failures
        self._totals: Counter[str] = Counter()
        self._first_state = self._state()
        self.last_recorded: list[Trajectory] = []
        self.last_teacher_records: TeacherRecords = {}

    def _new_run_dir(self) -> str:
        of_trial = self.logdir if self.is_actor() else None
        folder = Path(of_trial) if of_trial else create_run_folder(self.experiment)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(config_yaml(self.experiment), encoding="utf-8")
        return str(folder)

    @property
    def weights_seq_no(self) -> int:
        """The version of the weights that the policy deployment serves; the number of updates so far."""
        return self._weights_seq_no

    @property
    def _learners(self) -> SERLLearnerGroup:
        assert isinstance(self.learner_group, SERLLearnerGroup)
        return self.learner_group

    def training_step(self) -> None:
        """One iteration: collect a batch, update on it, publish the new weights, log what happened."""
        iteration = Iteration(time.monotonic() + self.experiment.training.iteration_timeout_s)
        batch = self._collect(iteration)
        result = self._update(batch, iteration)
        broadcast = self._publish(iteration)
        self._log(batch, result, broadcast, iteration)

    def _collect(self, iteration: Iteration) -> list[FinishedGroup]:
        while True:
            self._check_not_stopped("a batch of complete groups")
            self._turn(iteration, "a batch of complete groups", "rollout")
            batch = self._collector.take_batch(self._weights_seq_no)
            if batch is not None:
                iteration.waited_for_batch_s = iteration.seconds
                return batch

    def _update(self, batch: Sequence[FinishedGroup], iteration: Iteration) -> UpdateResult:
        require_rows(batch, self.experiment)
        self.last_recorded = trajectories_to_record(batch, self._weights_seq_no + 1, self.experiment.logging)
        recorded = frozenset(trajectory.trajectory_id for trajectory in self.last_recorded)
        rows, metrics = assemble(batch, self.experiment, self._weights_seq_no, recorded)
        self.is_updating = True
        handle = self._learners.start_update(rows, self._weights_seq_no)
        result = self._poll_until(
            functools.partial(self._learners.poll_update, handle, timeout_s=0.0), iteration, "the learners"
        )
        self.last_teacher_records = result.records
        return UpdateResult(metrics | result.metrics, result.records)

    def _publish(self, iteration: Iteration) -> BroadcastStats:
        call = self._learners.start_publish(self._weights_seq_no + 1)
        broadcast = self._poll_until(
            functools.partial(self._learners.poll_publish, call, timeout_s=0.0), iteration, "the replicas"
        )
        self._weights_seq_no += 1
        self.is_updating = False
        self._actors.snapshot = broadcast.snapshot
        return broadcast.stats

    def _log(
        self,
        batch: Sequence[FinishedGroup],
        result: UpdateResult,
        broadcast: BroadcastStats,
        iteration: Iteration,
    ) -> None:
        trajectories = [trajectory for group in batch for trajectory in group.group.trajectories]
        metrics = batch_metrics([group.sums for group in batch], trajectories, self._weights_seq_no - 1)
        metrics |= {f"learner/{name}": value for name, value in result.metrics.items()}
        metrics |= self._collector.metrics() | self._pool.metrics()
        metrics |= {f"broadcast/{name}": float(value) for name, value in asdict(broadcast).items()}
        metrics |= {f"total/{name}": float(value) for name, value in self._totals.items()}
        metrics |= iteration.metrics() | self._actors.metrics() | {"weights_seq_no": self._weights_seq_no}
        self.iteration_metrics = metrics | under_rllib_names(metrics)

    def run_evaluation(self) -> EvaluationResult:
        """Plays every evaluation task once, on the weights being served.

        Training episodes already with a runner go on; no update happens meanwhile. Raises TimeoutError
        after ``evaluation.timeout_s``, and TooManyFailuresError.
        """
        settings = self.experiment.evaluation
        requests = evaluation_requests(self.evaluation_tasks, settings.num_tasks, self.experiment.seed)
        iteration = Iteration(time.monotonic() + settings.timeout_s)
        waiting = self._pool.withdraw_queued()
        self._pool.submit(requests)
        episodes = EvaluationEpisodes(requests)
        while episodes.num_pending:
            waiting_for = f"{episodes.num_pending} of {len(requests)} evaluation episodes"
            self._check_not_stopped(waiting_for)
            iteration.check_deadline(waiting_for, self._pool, self._collector)
            report = self._poll_runners(iteration, learners_wait=True)
            self._pool.submit(episodes.take(report.trajectories, report.failures), urgent=True)
            self._show_progress(iteration, "evaluation", len(episodes.finished), len(requests))
        self._pool.submit(waiting)
        self._collector.failures.require_evaluation(len(requests), episodes.failed)
        return evaluation_result(episodes.finished, len(requests), self._weights_seq_no, iteration.seconds)

    def save_checkpoint(self, checkpoint_dir: str | Path) -> None:
        """`start_checkpoint`, and its answer."""
        self.start_checkpoint(Path(checkpoint_dir))()

    def start_checkpoint(self, directory: Path) -> Callable[[], None]:
        """Copies what is saved; the answer, which any thread may call, writes it while training goes on.

        Policy, learner state, `manifest.json`, `algorithm.json`; no other may start before they are written.
        Raises CheckpointError, with nothing written, if the disk has too little space, and LearnerError; the
        answer too, or OSError if files cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        require_free_space(directory, self._learners.saved_bytes())
        written = self._learners.start_save(directory, timeout_s=self.experiment.checkpoint.timeout_s)
        state = self._state()
        return lambda: complete_checkpoint(directory, written(), state)

    def _state(self) -> dict[str, Any]:
        return {
            "has_manifest": True,
            "weights_seq_no": self._weights_seq_no,
            "totals": dict(self._totals),
            "train_tasks_hash": self.train_tasks.content_hash,
        } | self._collector.get_state()

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Resumes from `save_checkpoint`: the tasks of groups that were in flight are played again.

        Whether files are as they were written is for the caller to ask (`serl.manifest.verify_checkpoint`).
        """
        self._resume_from(Path(checkpoint_dir))
        if self._weights_seq_no > 0:
            self._actors.snapshot = self._learners.publish_weights(self._weights_seq_no).snapshot

    def restart_learners(self, checkpoint: Path | None) -> None:
        """Puts new learners in the place of those that failed; resumes from ``checkpoint``, or starts anew.

        Env runners and replicas live on. Their episodes are given up, and the tasks of every group since then
        are played again; ``total/learner_restarts`` and ``total/updates_redone`` count it.
        """
        totals, reached = self._totals, self._weights_seq_no
        totals["rollouts_given_up"] += self._pool.give_up(self.experiment.cluster.heartbeat_timeout_s)
        self._learners.start(self.should_stop)
        self._actors.watch_learners(self._learners)
        self._resume_from(checkpoint)
        totals.update(learner_restarts=1, updates_redone=reached - self._weights_seq_no)
        self._totals = totals
        self._actors.snapshot = self._learners.publish_weights(self._weights_seq_no).snapshot

    def _resume_from(self, checkpoint: Path | None) -> None:
        """None: the learners are as they were at the start."""
        state = self._first_state
        if checkpoint is not None:
            state = read_algorithm_state(checkpoint)
            require_same_tasks(checkpoint, state, self.train_tasks.content_hash)
            self._learners.load(checkpoint, timeout_s=self.experiment.checkpoint.timeout_s)
        self._weights_seq_no = state["weights_seq_no"]
        self.is_updating = False
        set_iteration(self, self._weights_seq_no)
        self._collector.set_state(state)
        self._totals = Counter(state["totals"])

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Nothing: the pool brings them back, and RLlib's way would bring the learners' state here first."""
        return []

    def cleanup(self) -> None:
        if hasattr(self, "_actors"):
            self._actors.close()
            self._pool.close()
        super().cleanup()
        stop_serving(self._serving_names)
        self._collector.close()

    def _turn(self, iteration: Iteration, waiting_for: str, phase: str) -> None:
        """Once round the loop: new groups in, episodes out."""
        iteration.check_deadline(waiting_for, self._pool, self._collector)
        self._pool.submit(self._collector.admit(self._weights_seq_no))
        self._poll_runners(iteration, learners_wait=phase == "rollout")
        training = self.experiment.training
        wanted = training.groups_per_batch * training.group_size
        self._show_progress(iteration, phase, iteration.counters["episodes_finished"], wanted)

    def _poll_until(self, answer: Callable[[], T | None], iteration: Iteration, waiting_for: str) -> T:
        """Polls the env runners until ``answer`` has one."""
        while True:
            found = answer()
            if found is not None:
                return found
            self._turn(iteration, waiting_for, "update")

    def _poll_runners(self, iteration: Iteration, learners_wait: bool) -> PoolReport:
        self._actors.require_serving()
        self._scaler.look(learners_wait, self._collector.batch_waits, self._actors.num_serving)
        iteration.not_polling_s += time.monotonic() - iteration.last_polled
        report = self._pool.poll(_POLL_S)
        iteration.last_polled = time.monotonic()
        iteration.counters.update(report.counters)
        self._totals.update(report.counters)
        self._totals.update(self._actors.take_counts())
        self._collector.add(report.trajectories, self._weights_seq_no)
        iteration.counters.update(f"failed_{failure.reason}" for failure in report.failures)
        self._pool.submit(self._collector.replace(report.failures), urgent=True)
        return report

    def _check_not_stopped(self, waiting_for: str) -> None:
        """Not called during an update, when the learners are ahead of the counters."""
        if self.should_stop():
            raise TrainingInterrupted(f"stopped while waiting for {waiting_for}")
        self._collector.failures.require_episodes()

    def _show_progress(self, iteration: Iteration, phase: str, episodes: int, wanted: int) -> None:
        age, judge = self.iteration_metrics.get("staleness/mean", 0.0), self._collector.judge
        self.on_progress(iteration.progress(phase, episodes, wanted, age, judge.num_done, judge.num_pending))

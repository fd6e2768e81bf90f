"""How long the driver polls no env runner: the real loop on made-up trajectories, with stand-in learners.

`SERL.training_step`, `BatchCollector`, `SERLLearnerGroup.start_update` and Ray's way of sending plans are the
real ones. Trajectories come in pickled, as from an env runner; learners are actors that train nothing.
"""

from __future__ import annotations

import argparse
import functools
import pickle
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import ray

import serl.algorithm
import serl.batch.finisher
import serl.learner.learner_group
from envs.base import TaskSet
from serl.batch.collector import BatchCollector
from serl.batch.packing import LearnerPlan
from serl.config import ExperimentConfig
from serl.learner.learner_group import SERLLearnerGroup
from serl.learner.report import LearnerReport
from serl.rollout.actions import action_token_mask
from serl.rollout.prompt import PromptEncoder
from serl.rollout.runner_pool import PoolReport
from serl.rollout.scaling import PoolScaler
from serl.serving.weight_store import WeightVersion
from serl.serving.weights import Broadcast, BroadcastStats
from serl.types import RolloutRequest, Step, Task, Trajectory, VersionSpan
from tools.bench.figures import Figures
from tools.bench.play import local_cluster, with_settings

_UPDATE_S = 200.0
_START_TIMEOUT_S = 300.0
_NOT_POLLING, _FINISHER = "not polling", "processor time of the finisher's thread"
_THINGS = "apple book bowl candle cloth cup drawer fridge knife lamp mug pan pencil plate shelf sink".split()


def driver(
    experiment: ExperimentConfig, model_dir: Path, options: argparse.Namespace, figures: Figures
) -> None:
    encoder = PromptEncoder.load(str(model_dir))
    pickled = [_pickled_group(encoder, number, options) for number in range(options.groups)]
    figures.note(
        f"{experiment.model.path}: {options.groups} groups of {options.rollouts} trajectories of "
        f"{options.steps} steps come in over {options.seconds:g} s; {options.repetitions} updates"
    )
    model = figures.prefix
    with local_cluster() as run_dir:
        for num_learners in options.learners or (1, 4):
            sized = with_settings(
                experiment,
                training={
                    "groups_per_batch": options.groups,
                    "group_size": options.rollouts,
                    "filter_groups": False,
                },
                hindsight={"max_context_length": 2 * options.prompt_tokens + 512},
                learner={"num_learners": num_learners},
            )
            pool = _StandInPool(pickled, options.seconds)
            seconds, sizes = _measured(sized, encoder, pool, run_dir, options.repetitions)
            not_polling = [own.pop(_NOT_POLLING) for own in seconds]
            figures.prefix = f"{model}{num_learners} learner{'s' if num_learners > 1 else ''}: "
            figures.add(_NOT_POLLING, (1000.0 * one for one in not_polling), "ms", at_most=options.goal_ms)
            figures.add(f"{_NOT_POLLING} / {_UPDATE_S:g} s", (one / _UPDATE_S for one in not_polling))
            figures.add_all(seconds, "ms", scale=1000.0)
            figures.add_all(sizes, "bytes")


def _measured(
    experiment: ExperimentConfig, encoder: PromptEncoder, pool: _StandInPool, run_dir: Path, number: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Seconds and bytes of ``number`` updates, after an unmeasured one in which memory is asked for."""
    parts: Counter[str] = Counter()
    learners = _StandInLearners(experiment, parts)
    tasks = TaskSet("bench", tuple(Task(f"task {index}") for index in range(1000)), "made up")
    collector = BatchCollector(experiment, tasks, encoder, run_dir)
    loop = _Loop(experiment, collector, pool, learners)
    seconds: list[dict[str, float]] = []
    sizes: list[dict[str, float]] = []
    with (
        _timed(serl.algorithm, "assemble", parts, "of it, assemble"),
        _timed(serl.learner.learner_group, "plan_update", parts, "of it, plan"),
        _timed(serl.batch.finisher, "finish", parts, _FINISHER, time.thread_time),
        _timed(serl.batch.finisher, "add_evidence", parts, _FINISHER, time.thread_time),
    ):
        for _ in range(1 + number):
            pool.begin_update(loop.weights_seq_no)
            parts.clear()
            parts[_FINISHER] = 0
            loop.training_step()
            polling = {
                _NOT_POLLING: sum(pool.gaps),
                "of it, processor time": pool.busy_s,
                "of it, the longest gap": max(pool.gaps),
            }
            seconds.append({**polling, **parts})
            names = {"byte": "num_bytes", "row": "num_rows", "token": "num_tokens"}
            travelled = {unit: loop.iteration_metrics["learner/" + name] for unit, name in names.items()}
            sizes.append(
                {f"a {unit} that travels": travelled["byte"] / travelled[unit] for unit in ("row", "token")}
            )
    collector.close()
    learners.end()
    return seconds[1:], sizes[1:]


class _Loop(serl.algorithm.SERL):
    """The loop alone: nothing of what `SERL.setup` and RLlib start."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        collector: BatchCollector,
        pool: Any,
        learners: SERLLearnerGroup,
    ) -> None:
        self.experiment = experiment
        self.learner_group = learners
        self.iteration_metrics = {}
        self._pool = pool
        self._collector = collector
        self._weights_seq_no = 0
        self._totals = Counter()
        self._scaler = PoolScaler(experiment.rollout, pool)
        self._actors = SimpleNamespace(
            take_counts=Counter, snapshot=None, require_serving=lambda: None, metrics=dict, num_serving=1
        )


class _StandInPool:
    """Env runners that play what is asked for, one trajectory after another, all of an update in ``seconds``.

    ``gaps`` are the seconds between two polls since `begin_update`, ``busy_s`` what the caller's thread
    computed in them.
    """

    def __init__(self, pickled: Sequence[Sequence[bytes]], seconds: float) -> None:
        self._pickled = pickled
        self._interval_s = seconds / sum(map(len, pickled))
        self._requests: deque[RolloutRequest] = deque()
        self._next_due = self._polled = time.perf_counter()
        self._polled_busy = time.thread_time()
        self.begin_update(0)

    def begin_update(self, weights_seq_no: int) -> None:
        """Trajectories are now sampled with the weights ``weights_seq_no``."""
        self._weights_seq_no = weights_seq_no
        self.gaps: list[float] = []
        self.busy_s = 0.0

    def submit(self, requests: Iterable[RolloutRequest], urgent: bool = False) -> None:
        self._requests += requests

    def poll(self, timeout_s: float) -> PoolReport:
        self.gaps.append(time.perf_counter() - self._polled)
        self.busy_s += time.thread_time() - self._polled_busy
        time.sleep(timeout_s)
        report = PoolReport()
        now = time.perf_counter()
        while self._requests and self._next_due <= now:
            report.trajectories.append(self._play(self._requests.popleft()))
            self._next_due += self._interval_s
        if not self._requests:
            self._next_due = max(self._next_due, now)
        report.counters["episodes_finished"] = len(report.trajectories)
        self._polled_busy, self._polled = time.thread_time(), time.perf_counter()
        return report

    def metrics(self) -> dict[str, float]:
        return {}

    def _play(self, request: RolloutRequest) -> Trajectory:
        group = self._pickled[int(request.group_id[1:]) % len(self._pickled)]
        trajectory: Trajectory = pickle.loads(group[request.rollout_index])
        trajectory.group_id, trajectory.task = request.group_id, request.task
        trajectory.trajectory_id = f"{request.group_id}-{request.rollout_index}"
        for step in trajectory.steps:
            step.version_spans = (VersionSpan(0, len(step.response_ids), self._weights_seq_no),)
        return trajectory


class _StandInLearners(SERLLearnerGroup):
    """Learners that are sent their plans, and answer at once."""

    def __init__(self, experiment: ExperimentConfig, parts: Counter[str]) -> None:
        self._experiment = experiment
        self._in_flight = None
        self._parts = parts
        actor: Any = ray.remote(_StandInLearner).options(num_cpus=0)
        self._actors = [actor.remote() for _ in range(experiment.learner.num_learners)]
        ray.get([actor.layout.remote() for actor in self._actors], timeout=_START_TIMEOUT_S)

    def __del__(self) -> None:
        """RLlib would shut down what was never started."""

    @property
    def is_local(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self._actors)

    def _start(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        started = time.perf_counter()
        answers = [
            getattr(actor, method).remote(*own) for actor, own in zip(self._actors, arguments, strict=True)
        ]
        if method == "update_policy":
            self._parts["of it, send"] += time.perf_counter() - started  # pyright: ignore[reportArgumentType]
        return answers

    def end(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


class _StandInLearner:
    """Runs as a Ray actor; reports what came to it."""

    def layout(self) -> str:
        return "tree"

    def update_policy(self, plan: LearnerPlan, weights_seq_no: int) -> LearnerReport:
        report = LearnerReport()
        report.sums["num_bytes"] += len(pickle.dumps(plan, protocol=5))
        report.sums["num_rows"] += len(plan.rows)
        report.sums["num_tokens"] += int((plan.rows.num_tokens + plan.rows.teacher_prompt_ids.lengths).sum())
        return report

    def publish_weights(self, weights_seq_no: int) -> Broadcast:
        return Broadcast(BroadcastStats(0.0, 0.0, 0.0, 0.0, 0, 1), WeightVersion(weights_seq_no, {}))


@contextmanager
def _timed(
    owner: Any,
    function: str,
    parts: Counter[str],
    part: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[None]:
    """Adds the seconds of ``owner.function`` to ``parts[part]``."""
    original = getattr(owner, function)

    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        started = clock()
        try:
            return original(*arguments, **options)
        finally:
            parts[part] += clock() - started  # pyright: ignore[reportArgumentType]

    with mock.patch.object(owner, function, call):
        yield


def _pickled_group(encoder: PromptEncoder, number: int, options: argparse.Namespace) -> list[bytes]:
    """The trajectories of one group as an env runner sends them; every second one solves the task."""
    pickled = []
    for rollout_index in range(options.rollouts):
        steps = [
            # A group's first prompts are the same, as an environment's are.
            _step(encoder, options, random.Random(f"{number} {rollout_index if index else ''} {index}"))
            for index in range(options.steps)
        ]
        solved = rollout_index % 2 == 0
        trajectory = Trajectory(
            trajectory_id="",
            group_id="",
            rollout_index=rollout_index,
            task=Task(""),
            steps=steps,
            reward=10.0 * solved,
            success=solved,
            end_reason="success" if solved else "max_steps",
        )
        pickled.append(pickle.dumps(trajectory, protocol=5))
    return pickled


def _step(encoder: PromptEncoder, options: argparse.Namespace, draw: random.Random) -> Step:
    messages = ({"role": "user", "content": _sentences(encoder, options.prompt_tokens, draw)},)
    action = f"go to {draw.choice(_THINGS)} {draw.randrange(9)}"
    thought = _sentences(encoder, max(options.response_tokens - encoder.num_tokens(action) - 10, 1), draw)
    response = f"<think>{thought}</think><action>{action}</action>"
    ids = encoder.tokenizer.encode(response, add_special_tokens=False)
    observation = _sentences(encoder, 30, draw)
    return Step(
        prompt_ids=encoder.encode(messages),
        response_ids=ids,
        old_logprobs=[-draw.random() for _ in ids],
        action_mask=action_token_mask(ids, encoder.tokenizer),
        version_spans=(),
        finish_reason="stop",
        messages=messages,
        response_text=response,
        anchor=observation,
        action=action,
        action_valid=True,
        feedback=f"Nothing happens: {observation}",
        next_observation=observation,
    )


def _sentences(encoder: PromptEncoder, num_tokens: int, draw: random.Random) -> str:
    """Text of about ``num_tokens`` tokens."""

    def sentence() -> str:
        thing, place = draw.choices(_THINGS, k=2)
        return f"You see a {thing} {draw.randrange(9)} on the {place} {draw.randrange(9)}."

    return " ".join(sentence() for _ in range(max(num_tokens // encoder.num_tokens(sentence()), 1)))

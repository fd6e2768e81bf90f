"""`JudgePool`: the judge beside the training loop.

    group complete ──submit──▶ requests on a thread's event loop ──▶ take, with the batch ──▶ learners

The loop never waits in a call: it asks `has_answers` as it goes round, and takes the batch once all its
answers are there or ``hindsight.judge.max_wait_s`` is over. Nobody is asked about rows without advantage,
nor about a group that will be trained at λ = 0.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serl.batch.rows import evidence_options, trajectories_with_advantage
from serl.config import ExperimentConfig
from serl.hindsight.evidence import GroupView
from serl.hindsight.judge.answers import Judgement
from serl.hindsight.judge.cache import AnswerCache
from serl.hindsight.judge.endpoint import JudgeError, api_key
from serl.hindsight.judge_request import JudgeMode, judge_mode, judge_request
from serl.hindsight.lambda_schedule import effective_lambda
from serl.types import TrajectoryGroup

if TYPE_CHECKING:
    from serl.hindsight.judge.client import JudgeClient, Messages

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CLOSE_TIMEOUT_S = 10.0


class JudgePool:
    """Judgements of trajectories, asked for when their group is complete. One thread drives it.

    Without a judged source in ``hindsight.sources`` every method does nothing. Answers are kept in
    ``run_dir/judge/answers.jsonl``.
    """

    def __init__(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        self._experiment = experiment
        self._settings = experiment.hindsight.judge
        self._mode: JudgeMode | None = None
        if experiment.hindsight.enabled:
            self._mode = judge_mode(experiment.hindsight.sources)
        self._answers_file = run_dir / "judge" / "answers.jsonl"
        self._loop: _LoopThread | None = None
        self._client: JudgeClient | None = None
        # By group id, then trajectory id.
        self._pending: dict[str, dict[str, Future[Judgement]]] = {}
        self._texts: dict[str, dict[str, str]] = {}
        self._waiting_since: float | None = None
        self._last_weights_seq_no: int | None = None
        self._statistics = _Statistics()

    def submit(self, group: TrajectoryGroup, weights_seq_no: int, num_batches_before: int) -> None:
        """Asks about the trajectories of the complete ``group`` that have an advantage.

        The weights of ``weights_seq_no`` are served, and ``num_batches_before`` batches of complete groups
        will be taken first: that is the earliest update that may train on the group. Raises JudgeError if
        the key is not there, or under ``strict`` if an earlier request failed.
        """
        self._collect()
        updating = weights_seq_no == self._last_weights_seq_no
        if self._mode is None or not self._teaches(weights_seq_no + updating + num_batches_before):
            return
        view = GroupView(group.trajectories, evidence_options(self._experiment))
        include_feedback = self._settings.include_feedback
        for trajectory in trajectories_with_advantage(group, self._experiment):
            request = judge_request(trajectory, view, self._mode, include_feedback=include_feedback)
            future = self._ask(request.messages)
            self._pending.setdefault(group.group_id, {})[trajectory.trajectory_id] = future
            self._statistics.counts["requests"] += 1

    def has_answers(self, groups: Sequence[TrajectoryGroup], weights_seq_no: int) -> bool:
        """Whether update ``weights_seq_no`` need not wait for answers about ``groups`` (any longer).

        The first call that says no starts the wait. Raises JudgeError under ``strict`` if a request failed.
        """
        self._collect()
        pending = any(self._pending.get(group.group_id) for group in groups)
        if not pending or not self._teaches(weights_seq_no):
            return True
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        return time.monotonic() - self._waiting_since >= self._settings.max_wait_s

    def take(
        self, groups: Sequence[TrajectoryGroup], weights_seq_no: int, still_held: Callable[[str], bool]
    ) -> dict[str, str]:
        """What the judge said of the trajectories of ``groups``, by trajectory id, for ``weights_seq_no``.

        Requests still pending are given up: those about ``groups``, those about groups of which
        ``still_held`` says no (they were discarded), and all others if λ is 0 from the next update on.
        Raises JudgeError under ``strict`` if an answer is missing.
        """
        self._collect()
        if self._waiting_since is not None:
            self._statistics.waited_s += time.monotonic() - self._waiting_since
            self._waiting_since = None
        self._last_weights_seq_no = weights_seq_no
        texts: dict[str, str] = {}
        for group in groups:
            texts |= self._texts.pop(group.group_id, {})
            late = self._give_up(group.group_id)
            if late and self._teaches(weights_seq_no):
                self._fail("late", f"not there after {self._settings.max_wait_s:g} s", late)
        goes_on = self._teaches(weights_seq_no + 1)
        for group_id in [*self._pending, *self._texts]:
            if not goes_on or not still_held(group_id):
                self._statistics.counts["given_up"] += len(self._give_up(group_id))
                self._texts.pop(group_id, None)
        return texts

    @property
    def num_pending(self) -> int:
        """Trajectories asked about and not answered yet."""
        return sum(len(futures) for futures in self._pending.values())

    @property
    def num_done(self) -> int:
        """Trajectories answered, well or not, since `metrics` was called last."""
        self._collect()
        return self._statistics.num_done

    def metrics(self) -> dict[str, float]:
        """Counts and seconds since the last call; nothing where no judge is configured.

        ``requests``: trajectories asked about; ``answers``: usable ones, ``cached`` and ``fallback_answers``
        among them; ``failed_REASON``; ``given_up``: not needed any more; ``retries``: HTTP requests beyond
        the first of a trajectory; latencies: of answers and failures that were sent for; ``waited_s``: how
        long the batch waited.
        """
        if self._mode is None:
            return {}
        self._collect()
        statistics, self._statistics = self._statistics, _Statistics()
        return statistics.metrics() | {"judge/pending": float(self.num_pending)}

    def close(self) -> None:
        """Gives up what is pending and ends the thread. Raises TimeoutError if it does not end in time."""
        self._pending.clear()
        loop, client, self._loop, self._client = self._loop, self._client, None, None
        if loop is not None and client is not None:
            loop.close(client.close())

    def _teaches(self, weights_seq_no: int) -> bool:
        hindsight = self._experiment.hindsight
        return effective_lambda(hindsight.mixing_lambda, hindsight.lambda_decay_steps, weights_seq_no) > 0.0

    def _ask(self, messages: Messages) -> Future[Judgement]:
        if self._loop is None or self._client is None:
            # The client's package takes a second to import; most runs have no judge.
            from serl.hindsight.judge.client import JudgeClient

            key = api_key(self._settings)
            cache = AnswerCache(self._answers_file if self._settings.cache else None)
            self._client = JudgeClient(self._settings, key, cache)
            self._loop = _LoopThread()
        return self._loop.start(self._client.ask(messages))

    def _give_up(self, group_id: str) -> list[str]:
        """Cancels what is pending about the group; returns the trajectories it was about."""
        futures = self._pending.pop(group_id, {})
        for future in futures.values():
            future.cancel()
        return list(futures)

    def _collect(self) -> None:
        """Files what has been answered since; raises JudgeError under ``strict`` for a failure."""
        for group_id, futures in list(self._pending.items()):
            for trajectory_id in [name for name, future in futures.items() if future.done()]:
                judgement = futures.pop(trajectory_id).result()
                self._statistics.add(judgement)
                if judgement.text is None:
                    self._fail(judgement.reason, judgement.detail, [trajectory_id])
                else:
                    self._texts.setdefault(group_id, {})[trajectory_id] = judgement.text
            if not futures:
                del self._pending[group_id]

    def _fail(self, reason: str, detail: str, trajectory_ids: Sequence[str]) -> None:
        counts = self._statistics.counts
        if not counts[f"failed_{reason}"]:
            logger.warning("the judge gave no usable answer, %s: %s", reason, detail)
        counts[f"failed_{reason}"] += len(trajectory_ids)
        if self._settings.strict:
            raise JudgeError(
                f"hindsight.judge.strict = true: the judge gave no usable answer about trajectory "
                f"{trajectory_ids[0]}: {reason}: {detail}"
            )


class _Statistics:
    """Of one iteration."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(requests=0, answers=0, cached=0, fallback_answers=0, retries=0)
        self.latencies: list[float] = []
        self.num_done = 0
        self.waited_s = 0.0

    def add(self, judgement: Judgement) -> None:
        self.num_done += 1
        answered = judgement.text is not None
        self.counts["answers"] += answered
        self.counts["cached"] += judgement.cached
        self.counts["fallback_answers"] += answered and judgement.by_fallback
        self.counts["retries"] += judgement.retries
        if not judgement.cached:
            self.latencies.append(judgement.seconds)

    def metrics(self) -> dict[str, float]:
        metrics = {f"judge/{name}": float(count) for name, count in self.counts.items()}
        metrics["judge/waited_s"] = self.waited_s
        if self.latencies:
            metrics["judge/latency_mean_s"] = sum(self.latencies) / len(self.latencies)
            metrics["judge/latency_max_s"] = max(self.latencies)
        return metrics


class _LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancels all coroutines, then runs ``last``; raises TimeoutError if they do not end in time."""
        self.start(_cancel_all()).result(_CLOSE_TIMEOUT_S)
        self.start(last).result(_CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the judge's thread did not end within {_CLOSE_TIMEOUT_S:g} s")
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

"""`JudgePool`: the judge beside the training loop.

    finished group ──submit──▶ requests on a thread's event loop ──▶ take_answered ──▶ evidence of the group

The loop never waits in a call: it takes what is answered as it goes round. Where a batch has to wait,
`wait_for` gives up after ``hindsight.judge.max_wait_s``, and what is not there by then stays unsaid. Nobody
is asked about trajectories without an advantage, nor about a group that will be trained at λ = 0.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serl.config import ExperimentConfig
from serl.hindsight.evidence import GroupView
from serl.hindsight.judge.answers import Judgement
from serl.hindsight.judge.cache import AnswerCache
from serl.hindsight.judge.endpoint import JudgeError, api_key
from serl.hindsight.judge_request import judge_mode, judge_request
from serl.hindsight.schedules import teaches
from serl.types import Trajectory, TrajectoryGroup

if TYPE_CHECKING:
    from serl.hindsight.judge.client import JudgeClient, Messages

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _JudgedGroup:
    """``pending``: requests by trajectory id; ``texts``: what was answered."""

    pending: dict[str, Future[Judgement]] = field(default_factory=dict[str, Future[Judgement]])
    texts: dict[str, str] = field(default_factory=dict[str, str])


class JudgePool:
    """Judgements of trajectories of finished groups. One thread drives it.

    Without a judged source in ``hindsight.sources`` nothing is to be submitted. Answers are kept in
    ``run_dir/judge/answers.jsonl``. ``on_failure(kind, reason, text, count)`` is told of trajectories without
    a usable answer (``judge``) and of requests that have to be sent again (``judge_request``).
    """

    def __init__(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        self._hindsight = experiment.hindsight
        self._settings = experiment.hindsight.judge
        self._mode = judge_mode(experiment.hindsight.sources) if experiment.hindsight.enabled else None
        self._answers_file = run_dir / "judge" / "answers.jsonl"
        self._loop: _LoopThread | None = None
        self._client: JudgeClient | None = None
        self._groups: dict[str, _JudgedGroup] = {}
        self._waiting_since: float | None = None
        self._statistics = _Statistics()
        self.on_failure: Callable[[str, str, str, int], None] = lambda kind, reason, text, count: None

    @property
    def is_asked(self) -> bool:
        """Whether groups have to be judged before their evidence is complete."""
        return self._mode is not None

    def submit(self, group: TrajectoryGroup, trajectories: Sequence[Trajectory], weights_seq_no: int) -> None:
        """Asks about ``trajectories`` of ``group``, trained at ``weights_seq_no`` at the earliest.

        Raises JudgeError if the key is not there, or under ``strict`` if an earlier request failed.
        """
        assert self._mode is not None, "no source is judged"
        self._collect()
        judged = self._groups[group.group_id] = _JudgedGroup()
        if not teaches(self._hindsight, weights_seq_no):
            return
        view = GroupView(group.trajectories, self._hindsight)
        for trajectory in trajectories:
            request = judge_request(
                trajectory, view, self._mode, include_feedback=self._settings.include_feedback
            )
            judged.pending[trajectory.trajectory_id] = self._ask(request.messages)
            self._statistics.counts["requests"] += 1

    def take_answered(self) -> dict[str, dict[str, str]]:
        """What was said, by group and trajectory id, of groups about which no request is pending any more.

        Each group is handed out once. Raises JudgeError under ``strict`` if a request failed.
        """
        self._collect()
        answered = {name: judged.texts for name, judged in self._groups.items() if not judged.pending}
        for group_id in answered:
            del self._groups[group_id]
        return answered

    def wait_for(self, group_ids: Collection[str]) -> None:
        """A batch with the groups ``group_ids`` waits. The first call starts the clock.

        Once ``max_wait_s`` is over, requests about them are given up. Raises JudgeError then if ``strict``.
        """
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        if time.monotonic() - self._waiting_since < self._settings.max_wait_s:
            return
        for group_id in group_ids:
            late = self._give_up(group_id)
            if late:
                self._fail("late", f"not there after {self._settings.max_wait_s:g} s", late)

    def end_wait(self, weights_seq_no: int, still_held: Callable[[str], bool]) -> None:
        """A batch was taken for the update of ``weights_seq_no``.

        Requests are given up about groups of which ``still_held`` says no (they were trained or discarded),
        and all others if λ is 0 from the next update on.
        """
        if self._waiting_since is not None:
            self._statistics.waited_s += time.monotonic() - self._waiting_since
            self._waiting_since = None
        still_teaches = teaches(self._hindsight, weights_seq_no + 1)
        for group_id in list(self._groups):
            if not still_teaches or not still_held(group_id):
                self._statistics.counts["given_up"] += len(self._give_up(group_id))
            if not still_held(group_id):
                del self._groups[group_id]

    def forget(self) -> None:
        """Gives up every request: what was asked about is not in the buffer any more."""
        for group_id in list(self._groups):
            self._statistics.counts["given_up"] += len(self._give_up(group_id))
        self._groups.clear()
        self._waiting_since = None

    @property
    def num_pending(self) -> int:
        """Trajectories asked about and not answered yet."""
        return sum(len(judged.pending) for judged in self._groups.values())

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
        self._groups.clear()
        loop, client, self._loop, self._client = self._loop, self._client, None, None
        if loop is not None and client is not None:
            loop.close(client.close())

    def _ask(self, messages: Messages) -> Future[Judgement]:
        if self._loop is None or self._client is None:
            # The client's package takes a second to import; most runs have no judge.
            from serl.hindsight.judge.client import JudgeClient

            key = api_key(self._settings)
            cache = AnswerCache(self._answers_file)
            self._client = JudgeClient(self._settings, key, cache)
            self._loop = _LoopThread()
        return self._loop.start(self._client.ask(messages))

    def _give_up(self, group_id: str) -> list[str]:
        """Cancels what is pending about the group; returns the trajectories it was about."""
        judged = self._groups.get(group_id, _JudgedGroup())
        given_up = list(judged.pending)
        for future in judged.pending.values():
            future.cancel()
        judged.pending.clear()
        return given_up

    def _collect(self) -> None:
        """Files what has been answered since; raises JudgeError under ``strict`` for a failure."""
        while self._client is not None and self._client.sent_again:
            again = self._client.sent_again.popleft()
            self.on_failure("judge_request", again.reason, f"{again.detail}; it is sent again", 1)
        for judged in self._groups.values():
            for trajectory_id in [name for name, future in judged.pending.items() if future.done()]:
                judgement = judged.pending.pop(trajectory_id).result()
                self._statistics.add(judgement)
                if judgement.text is None:
                    self._fail(judgement.reason, judgement.detail, [trajectory_id])
                else:
                    judged.texts[trajectory_id] = judgement.text

    def _fail(self, reason: str, detail: str, trajectory_ids: Sequence[str]) -> None:
        self._statistics.counts[f"failed_{reason}"] += len(trajectory_ids)
        about = f"trajectory {trajectory_ids[0]}" + (" and others" if len(trajectory_ids) > 1 else "")
        self.on_failure("judge", reason, f"no usable answer about {about}: {detail}", len(trajectory_ids))
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

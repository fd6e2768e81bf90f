"""`GroupFinisher`: finishes groups in a thread, so that the driver goes on polling its env runners.

One thread is enough (a step takes a millisecond or two, mostly its teacher prompt) and owns the tokenizer,
which is not made for several. What waits for it is bounded by the groups that the buffer admits.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from serl.batch.controls import ProgressJudge
from serl.batch.group import FinishedGroup, add_evidence, finish
from serl.batch.teacher_prompts import evidence_of_steps
from serl.config import ExperimentConfig
from serl.hindsight.evidence import StepEvidence
from serl.hindsight.judge_request import judge_mode
from serl.hindsight.schedules import teaches
from serl.rollout.prompt import PromptEncoder
from serl.types import TrajectoryGroup


class GroupFinisher:
    """One thread of the caller's drives it; ``config`` and the policy's tokenizer decide what follows.

    Raises what `ProgressJudge.of` does.
    """

    def __init__(self, config: ExperimentConfig, encoder: PromptEncoder) -> None:
        self._config = config
        self._encoder = encoder
        self._progress = ProgressJudge.of(config)
        self._is_judged = judge_mode(config.hindsight.sources) is not None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finisher")
        self._lent: list[StepEvidence] = []
        self._jobs: list[Future[FinishedGroup]] = []

    def submit(self, group: TrajectoryGroup, weights_seq_no: int) -> None:
        """Finishes the complete ``group``, trained at ``weights_seq_no`` at the earliest.

        Its evidence is added at once, unless a judge has to speak first or λ will be 0.
        """
        has_evidence = not self._is_judged and teaches(self._config.hindsight, weights_seq_no)
        self._jobs.append(self._thread.submit(self._finish, group, has_evidence, weights_seq_no))

    def submit_evidence(self, finished: FinishedGroup, judge_texts: Mapping[str, str | None]) -> None:
        """Adds the evidence of a group that was judged."""
        job = self._thread.submit(self._add_evidence, finished, judge_texts)
        self._jobs.append(job)

    def take_finished(self) -> list[FinishedGroup]:
        """What is done since the last call, in the order of submission; raises what finishing raised."""
        done: list[FinishedGroup] = []
        while self._jobs and self._jobs[0].done():
            done.append(self._jobs.pop(0).result())
        return done

    def forget(self) -> None:
        """Gives up what was submitted; what is being done ends on its own, and nobody gets it."""
        for job in self._jobs:
            job.cancel()
        self._jobs.clear()

    def close(self) -> None:
        """Gives up what waits; what is being done ends on its own."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _finish(self, group: TrajectoryGroup, has_evidence: bool, weights_seq_no: int) -> FinishedGroup:
        finished = finish(group, self._config)
        if self._progress is not None:
            return self._progress.weigh(finished, weights_seq_no)
        return self._add_evidence(finished, {}) if has_evidence else finished

    def _add_evidence(self, finished: FinishedGroup, judge_texts: Mapping[str, str | None]) -> FinishedGroup:
        if self._config.hindsight.control != "other_group":
            return add_evidence(finished, self._config, self._encoder, judge_texts)
        lent = self._lent
        self._lent = evidence_of_steps(finished.group, self._config.hindsight, judge_texts)
        return add_evidence(finished, self._config, self._encoder, judge_texts, lent)

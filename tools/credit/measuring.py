"""How well the log-ratio of each kind of evidence tells progress from the rest, on groups of episodes."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from envs.base import MeasuringProvider
from serl.batch.group import FinishedGroup, add_evidence, finish
from serl.config import ExperimentConfig, HindsightSection
from serl.config.hindsight import Weight, judged_sources
from serl.config.hindsight_modes import MODES
from serl.config.registry import SOURCES
from serl.hindsight.credit import IDLE, REST, Auc, ScoredActions
from serl.hindsight.teacher_weights import log_ratio
from serl.rollout.progress import ActionKind, judged_trajectory
from serl.run.credit import action_logprob, teacher_score
from serl.types import TeacherRecords, TrajectoryGroup
from tools.credit.policy import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Credit:
    """``share`` of the rows with an advantage have the evidence; AUCs are over all of these, or some."""

    share: float
    idle: Auc
    idle_positive: Auc
    idle_negative: Auc
    rest: Auc

    @classmethod
    def of(cls, actions: ScoredActions, share: float) -> Credit:
        return cls(
            share,
            actions.auc(IDLE),
            actions.auc(IDLE, sign=1),
            actions.auc(IDLE, sign=-1),
            actions.auc(REST),
        )


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """``kinds`` has one entry a row of ``finished``, trajectory by trajectory."""

    finished: FinishedGroup
    kinds: list[ActionKind]

    @property
    def rows(self) -> list[int]:
        """The rows that a teacher may weigh: with an advantage and an action."""
        return [
            row
            for row, step in enumerate(self.finished.group.steps)
            if self.finished.rows.advantages[row] != 0.0 and any(step.action_mask)
        ]


def judge_groups(
    provider: MeasuringProvider, groups: Sequence[TrajectoryGroup], config: ExperimentConfig
) -> tuple[list[JudgedGroup], int]:
    """Groups that would be trained on, and what each step was; also how many groups cannot be judged.

    A group has to have advantages, and a variance where ``training.filter_groups`` asks for one. Anchors are
    filled in: they are what is seen when an episode is played again.
    """
    judged: list[JudgedGroup] = []
    num_not_judged = 0
    for group in groups:
        try:
            kinds = _fill_in(provider, group)
        except ValueError as error:
            logger.warning("left out: %s", error)
            num_not_judged += 1
            continue
        own = JudgedGroup(finish(group, config), kinds)
        if own.rows and (own.finished.has_variance or not config.training.filter_groups):
            judged.append(own)
    return judged, num_not_judged


def _fill_in(provider: MeasuringProvider, group: TrajectoryGroup) -> list[ActionKind]:
    kinds: list[ActionKind] = []
    for trajectory in group.trajectories:
        known = judged_trajectory(provider, trajectory)
        for step, judged in zip(trajectory.steps, known, strict=True):
            step.anchor = judged.anchor
            kinds.append(judged.kind)
    return kinds


def sections(config: ExperimentConfig) -> dict[str, HindsightSection]:
    """By name: every source on its own, the paper's modes, and what the experiment itself asks for.

    All with the experiment's own lengths and formats. Judged ones are left out: they ask a model elsewhere.
    """
    own = config.hindsight
    found: dict[str, HindsightSection] = {}

    def add(name: str, sources: Sequence[str], granularity: str = "step", combine: str = "all") -> None:
        if not judged_sources(sources):
            chosen: dict[str, Any] = {
                "enabled": True,
                "mode": None,
                "sources": sources,
                "granularity": granularity,
                "combine": combine,
            }
            args = {source: args for source, args in own.args.items() if source in sources}
            found[name] = HindsightSection.model_validate(own.model_dump() | chosen | {"args": args})

    for source in SOURCES.built_in():
        add(source, (source,))
    for name, mode in MODES.items():
        add(name, *mode)
    known = [(s.sources, s.granularity, s.combine) for s in found.values()]
    if (own.sources, own.granularity, own.combine) not in known:
        add("experiment", own.sources, own.granularity, own.combine)
    return found


def measure_student(groups: Sequence[JudgedGroup]) -> Credit:
    """Of the log-prob that the policy itself gave its actions."""
    actions = [
        (action_logprob(group.finished.group.steps[row]), *_about(group, row), index)
        for index, group in enumerate(groups)
        for row in group.rows
    ]
    return Credit.of(ScoredActions.of(actions), share=1.0)


def measure_records(groups: Sequence[JudgedGroup], records: TeacherRecords, weight: Weight) -> Credit:
    """Of what the weights of a run were made of, exactly as it recorded and trained on it."""
    actions: list[tuple[float, ActionKind, float, int]] = []
    for index, group in enumerate(groups):
        rows = group.finished.rows
        for row in group.rows:
            record = records.get((rows.trajectory_ids[row], rows.step_indices[row]))
            step = group.finished.group.steps[row]
            score = None if record is None else teacher_score(record, step, weight)
            if score is not None:
                actions.append((score, *_about(group, row), index))
    return Credit.of(ScoredActions.of(actions), len(actions) / sum(len(group.rows) for group in groups))


def measure_sources(
    policy: Policy,
    groups: Sequence[JudgedGroup],
    config: ExperimentConfig,
    names: Sequence[str],
    max_tokens: int,
) -> Iterator[tuple[str, Credit]]:
    """Of the context effect, log π_T(a | s, c) − log π_T(a | s), with ``policy`` as the teacher, by name.

    That is Δ of training while the teacher is the policy that sampled; where ``hindsight.weight`` is
    ``action_probability``, of log π_T(a | s, c). ``names`` are those of `sections`. Of each the teacher reads
    ``max_tokens`` tokens: rows of a random order that depends on nothing else.
    """
    place = [(index, row) for index, group in enumerate(groups) for row in group.rows]
    random.Random(0).shuffle(place)
    by_ratio = config.hindsight.weight == "log_ratio"
    without_context: dict[tuple[int, int], Tensor] = {}
    if by_ratio:
        steps = [groups[index].finished.group.steps[row] for index, row in place]
        plain = policy.action_logprobs(
            [step.prompt_ids for step in steps],
            [step.response_ids for step in steps],
            [step.action_mask for step in steps],
        )
        without_context = dict(zip(place, plain, strict=True))
    for name in names:
        told = config.model_copy(update={"hindsight": sections(config)[name]})
        rows = [add_evidence(group.finished, told, policy.encoder, {}).rows for group in groups]
        known = [(index, row) for index, row in place if rows[index].has_teacher_prompt[row]]
        num_tokens = accumulate(int(rows[index].num_teacher_tokens[row]) for index, row in known)
        chosen = [at for at, total in zip(known, num_tokens, strict=True) if total <= max_tokens]
        with_context = policy.action_logprobs(
            [rows[index].teacher_prompt_ids[row] for index, row in chosen],
            [rows[index].response_ids[row].tolist() for index, row in chosen],
            [rows[index].action_mask[row].tolist() for index, row in chosen],
        )
        scores = dict(zip(chosen, with_context, strict=True))
        if by_ratio:
            scores = {at: log_ratio(scored, without_context[at]) for at, scored in scores.items()}
        actions = [
            (float(score.sum()), *_about(groups[index], row), index) for (index, row), score in scores.items()
        ]
        yield name, Credit.of(ScoredActions.of(actions), len(known) / len(place))


def _about(group: JudgedGroup, row: int) -> tuple[ActionKind, float]:
    return group.kinds[row], float(group.finished.rows.advantages[row])

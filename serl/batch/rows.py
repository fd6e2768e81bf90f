"""From trajectory groups to training samples: rewards, advantages, teacher prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from serl.batch.advantages import StepRows, group_advantages
from serl.config import ExperimentConfig
from serl.hindsight.anchors import anchor_size_metrics
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import render_context, with_context
from serl.hindsight.evidence import EvidenceOptions, GroupView, StepEvidence
from serl.hindsight.modes import HindsightMode, hindsight_mode
from serl.hindsight.sources import evidence_source
from serl.learner.teacher import teacher_lambda
from serl.rollout.prompt import PromptEncoder
from serl.types import Step, TrainingRow, Trajectory, TrajectoryGroup


def build_rows(
    groups: Sequence[TrajectoryGroup],
    config: ExperimentConfig,
    encoder: PromptEncoder,
    weights_seq_no: int,
    judge_texts: Mapping[str, str | None] | None = None,
) -> tuple[list[TrainingRow], dict[str, float]]:
    """One sample per step of ``groups``, group by group, and the metrics of the batch.

    A row's reward is its trajectory's (over its number of steps with ``advantage.normalize_by_length``), less
    ``env.invalid_action_penalty`` where the action was invalid; the advantage is relative to the group, and
    negative ones are scaled by ``loss.negative_advantage_scale``.
    Rows of a group without spread have advantage 0: nobody computes them, but they stay in the list because
    the loss is a mean over all rows of the batch (see `serl.batch.packing`).

    While λ of ``weights_seq_no`` is positive, rows with an advantage and with evidence get a teacher prompt;
    ``judge_texts`` is what a judge said, by trajectory id. Metrics: those of `group_advantages`,
    ``num_rows``, ``num_rows_with_advantage``, and while λ is positive those of `_ContextCounts`.
    """
    steps = [
        (group, trajectory, index)
        for group in groups
        for trajectory in group.trajectories
        for index in range(len(trajectory.steps))
    ]
    if not steps:
        return [], {"num_groups": float(len(groups)), "num_rows": 0.0, "num_rows_with_advantage": 0.0}
    advantages, metrics = _advantages(groups, config)
    samples = [
        _sample(group, trajectory, index, advantage)
        for (group, trajectory, index), advantage in zip(steps, advantages.tolist(), strict=True)
    ]
    metrics["num_rows"] = float(len(samples))
    metrics["num_rows_with_advantage"] = float(sum(sample.advantage != 0.0 for sample in samples))
    if teacher_lambda(config.hindsight, weights_seq_no) > 0.0:
        metrics |= _add_teacher_prompts(samples, groups, config, encoder, judge_texts or {})
    return samples, metrics


def trajectories_with_advantage(group: TrajectoryGroup, config: ExperimentConfig) -> list[Trajectory]:
    """The trajectories of ``group`` that have a row with an advantage: evidence about others is not read.

    A group that differs from others only (``reinforce_pp_baseline``) counts as one without advantage.
    """
    owners = [trajectory for trajectory in group.trajectories for _ in trajectory.steps]
    if not owners:
        return []
    advantages, _ = _advantages([group], config)
    weighted = {
        owner.trajectory_id
        for owner, advantage in zip(owners, advantages.tolist(), strict=True)
        if advantage != 0.0
    }
    return [trajectory for trajectory in group.trajectories if trajectory.trajectory_id in weighted]


def _advantages(
    groups: Sequence[TrajectoryGroup], config: ExperimentConfig
) -> tuple[Tensor, dict[str, float]]:
    rows = StepRows.from_groups(groups, gamma=config.advantage.gamma)
    invalid = torch.tensor(
        [not step.action_valid for group in groups for t in group.trajectories for step in t.steps]
    )
    rewards = rows.rewards / rows.num_steps if config.advantage.normalize_by_length else rows.rewards
    rows = replace(rows, rewards=rewards - config.env.invalid_action_penalty * invalid)
    options = config.advantage.model_dump()
    advantages, metrics = group_advantages(rows, config.advantage.estimator, options)
    scale = config.loss.negative_advantage_scale
    return torch.where(advantages < 0.0, advantages * scale, advantages), metrics


def _sample(group: TrajectoryGroup, trajectory: Trajectory, step_index: int, advantage: float) -> TrainingRow:
    step = trajectory.steps[step_index]
    return TrainingRow(
        group_id=group.group_id,
        trajectory_id=trajectory.trajectory_id,
        step_index=step_index,
        prompt_ids=step.prompt_ids,
        response_ids=step.response_ids,
        old_logprobs=step.old_logprobs,
        action_mask=step.action_mask,
        advantage=advantage,
        weights_seq_no=step.weights_seq_no,
    )


@dataclass(slots=True)
class _ContextCounts:
    """What became of rows with an advantage.

    ``evidence_share/<source>`` is the share of them with evidence of that source, ``evidence_share/any`` with
    some; ``num_rows_without_action`` have no action token, so a context would change nothing;
    ``num_contexts_shortened`` left ``num_context_steps_left_out`` quoted steps out,
    ``num_contexts_too_long`` were too long even so, and left out as a whole.
    """

    num_rows: int = 0
    num_rows_without_action: int = 0
    num_teacher_prompts: int = 0
    num_contexts_shortened: int = 0
    num_context_steps_left_out: int = 0
    num_contexts_too_long: int = 0
    num_rows_with: Counter[str] = field(default_factory=Counter)
    anchor_sizes: list[int] = field(default_factory=list)

    def metrics(self, sources: Sequence[str]) -> dict[str, float]:
        counts = {
            "num_rows_without_action": self.num_rows_without_action,
            "num_teacher_prompts": self.num_teacher_prompts,
            "num_contexts_shortened": self.num_contexts_shortened,
            "num_context_steps_left_out": self.num_context_steps_left_out,
            "num_contexts_too_long": self.num_contexts_too_long,
        }
        shares = {
            f"evidence_share/{source}": self.num_rows_with[source] / max(self.num_rows, 1)
            for source in ("any", *sources)
        }
        sizes = anchor_size_metrics(self.anchor_sizes, "evidence")
        return {name: float(count) for name, count in counts.items()} | shares | sizes


def _add_teacher_prompts(
    samples: list[TrainingRow],
    groups: Sequence[TrajectoryGroup],
    config: ExperimentConfig,
    encoder: PromptEncoder,
    judge_texts: Mapping[str, str | None],
) -> dict[str, float]:
    mode, options = _mode(config), evidence_options(config)
    counts = _ContextCounts()
    rows = iter(samples)
    for group in groups:
        view = GroupView(group.trajectories, options, judge_texts)
        own = [next(rows) for trajectory in group.trajectories for _ in trajectory.steps]
        if all(sample.advantage == 0.0 for sample in own):
            continue
        evidence = [step for trajectory in collect_evidence(view, mode) for step in trajectory]
        counts.anchor_sizes += [known.anchor_size for known in evidence if known.anchor_size]
        steps = [step for trajectory in group.trajectories for step in trajectory.steps]
        for sample, step, known in zip(own, steps, evidence, strict=True):
            if sample.advantage == 0.0:
                continue
            counts.num_rows += 1
            counts.num_rows_with.update(known.sources, any=int(bool(known)))
            if not any(sample.action_mask):
                counts.num_rows_without_action += 1
            elif known:
                limit = config.hindsight.max_context_length
                _add_teacher_prompt(sample, step, known, encoder, limit, counts)
    return counts.metrics([evidence_source(name).name for name in mode.sources])


def _add_teacher_prompt(
    sample: TrainingRow,
    step: Step,
    evidence: StepEvidence,
    encoder: PromptEncoder,
    limit: int,
    counts: _ContextCounts,
) -> None:
    """The step's prompt with the evidence in it, at most ``limit`` ids; none if it cannot be that short."""
    text, stats = render_context(evidence)
    assert text is not None
    ids = encoder.encode(with_context(step.messages, text))
    if len(ids) > limit:
        budget = max(limit - (len(ids) - encoder.num_tokens(text)), 0)
        text, stats = render_context(evidence, encoder.num_tokens, budget)
        assert text is not None
        ids = encoder.encode(with_context(step.messages, text))
        if len(ids) > limit:
            counts.num_contexts_too_long += 1
            return
    counts.num_contexts_shortened += stats.num_dropped_steps > 0
    counts.num_context_steps_left_out += stats.num_dropped_steps
    counts.num_teacher_prompts += 1
    sample.teacher_prompt_ids = ids
    sample.context = text
    sample.evidence_sources = evidence.sources


def _mode(config: ExperimentConfig) -> HindsightMode:
    hindsight = config.hindsight
    if hindsight.mode is not None:
        return hindsight_mode(hindsight.mode)
    return HindsightMode(hindsight.sources, hindsight.granularity, hindsight.combine)


def evidence_options(config: ExperimentConfig) -> EvidenceOptions:
    hindsight = config.hindsight
    return EvidenceOptions(
        trajectory_format=hindsight.trajectory_format,
        exclude_own_success=hindsight.exclude_own_success,
        remove_thinking=hindsight.remove_thinking,
        max_trajectory_steps=hindsight.max_trajectory_steps,
        max_future_steps=hindsight.max_future_steps,
        anchor_similarity=hindsight.anchor_similarity,
    )

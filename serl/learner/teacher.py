"""The hindsight teacher: a copy of the policy that reads evidence beside the prompt.

The teacher scores exactly the ids that were sampled, at the temperature of sampling. What the student thought
of them are the log-probs that its sampler recorded (SERL, arXiv 2605.19447), so the student is not run again.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from serl.batch.packing import LearnerPlan, MicroBatch, TeacherMicroBatch
from serl.batch.rows import Array, TrainingRows
from serl.config import HindsightSection
from serl.hindsight.distillation import TopTokens
from serl.hindsight.teacher_weights import (
    Gather,
    action_weights,
    log_ratio,
    log_ratio_parts,
    teacher_weights,
    weighted_advantages,
)
from serl.learner.adapters import Scorer
from serl.learner.report import LearnerReport
from serl.learner.response_tokens import ResponseTokens
from serl.learner.rl_module import CausalLMModule
from serl.learner.token_batch import TokenBatch, make_token_batch
from serl.learner.token_scores import TokenScores
from serl.models.weights import cast_parameters

Forward = Callable[[Scorer, TokenBatch], TokenScores]


def copy_policy(policy: CausalLMModule, dtype: torch.dtype) -> CausalLMModule:
    """A frozen copy of a ``policy`` that is not sharded, its weights rounded to ``dtype``."""
    copied = copy.deepcopy(policy).requires_grad_(False)
    cast_parameters(copied, dtype)
    return copied


@torch.no_grad()
def copy_weights(source: Scorer, target: Scorer) -> None:
    """Copies what training changes; shards stay where they are."""
    targets = target.trained_weights()
    for name, tensor in source.trained_weights().items():
        targets[name].copy_(tensor)


@torch.no_grad()
def follow_policy(
    policy: CausalLMModule, teacher: Scorer, settings: HindsightSection, weights_seq_no: int
) -> None:
    """Brings the ``teacher`` to what it is to be before the update that trains on ``weights_seq_no``.

    Of adapters a moving average is that of each factor, not of their products.
    """
    if settings.teacher == "synced" and weights_seq_no % settings.teacher_sync_interval == 0:
        copy_weights(policy, teacher)
    elif settings.teacher == "ema":
        averages = teacher.trained_weights()
        for name, tensor in policy.trained_weights().items():
            averages[name].lerp_(tensor, 1.0 - settings.teacher_ema_decay)


def context_free_rows(rows: TrainingRows, settings: HindsightSection, seed: Sequence[int]) -> list[int]:
    """Indices of the rows that the teacher also scores without the context.

    With ``baseline: teacher`` all that have a teacher prompt. Else the log-ratio's two parts are metrics
    only, and a random ``log_ratio_sample_rows`` of them will do, first those that are recorded.
    """
    chosen = np.flatnonzero(rows.has_teacher_prompt).tolist()
    if settings.baseline == "teacher":
        return chosen
    random.Random(f"{list(seed)}:drift").shuffle(chosen)
    chosen.sort(key=lambda row: not rows.recorded[row])
    return chosen[: settings.log_ratio_sample_rows]


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """The teacher's log-probs of the action tokens of rows with a teacher prompt, [T], elsewhere 0.

    ``without_context`` is known where ``compared`` is true. ``top`` are the likeliest tokens at the distilled
    tokens, in their order, with context; None if they were not asked for.
    """

    with_context: Tensor
    without_context: Tensor
    compared: Tensor
    top: TopTokens | None = None


@dataclass(frozen=True, slots=True)
class WeightedTokens:
    """What the teacher made of T response tokens.

    ``advantages`` enter the loss; ``weights`` are 1 where the teacher had no say, and ``log_ratios``, before
    centring, are 0 where it scored nothing. ``scores`` None: the teacher was not asked.
    """

    advantages: Tensor
    weights: Tensor
    log_ratios: Tensor
    scores: TeacherScores | None

    @classmethod
    def unweighted(cls, tokens: ResponseTokens) -> WeightedTokens:
        advantages = tokens.advantages
        return cls(advantages, torch.ones_like(advantages), torch.zeros_like(advantages), None)


@torch.no_grad()
def score_actions(
    teacher: Scorer, plan: LearnerPlan, tokens: ResponseTokens, forward: Forward, top_k: int = 0
) -> tuple[TeacherScores, int]:
    """The scores, and how many tokens the forward passes computed.

    Compared rows are scored with and without context, other rows with a teacher prompt once, the rest never.
    With ``top_k`` the distributions at distilled tokens are kept, 8 bytes for each of the likeliest tokens.
    """
    with_context, without_context = torch.zeros_like(tokens.old_logprobs).expand(2, -1).clone()
    compared = torch.zeros_like(tokens.selected)
    collected: list[tuple[Tensor, TopTokens]] = []
    num_computed = 0
    for rows in plan.teacher_micro_batches:
        batch = _action_batch(teacher, plan.rows, rows, with_context.device)
        scores = forward(teacher, replace(batch, top_k=top_k))
        num_computed += batch.input_ids.numel()
        taught, bare = (_actions(tokens, part) for part in (rows.with_context, rows.without_context))
        with_context[taught] = scores.logprobs[: len(taught)]
        without_context[bare] = scores.logprobs[len(taught) : len(taught) + len(bare)]
        compared[bare] = True
        if scores.top is not None:
            (kept,) = tokens.distilled[taught].nonzero(as_tuple=True)
            collected.append((taught[kept], TopTokens(scores.top.ids[kept], scores.top.logprobs[kept])))
    top = _in_token_order(collected)
    return TeacherScores(with_context, without_context, compared, top), num_computed


def _actions(tokens: ResponseTokens, rows: MicroBatch) -> Tensor:
    """Positions of the action tokens of ``rows``, in their order."""
    if not rows:
        return torch.empty(0, dtype=torch.long, device=tokens.selected.device)
    positions = tokens.positions(rows)
    return positions[tokens.selected[positions]]


def _in_token_order(collected: Sequence[tuple[Tensor, TopTokens]]) -> TopTokens | None:
    if not collected:
        return None
    order = torch.cat([positions for positions, _ in collected]).argsort()
    ids = torch.cat([top.ids for _, top in collected])[order]
    return TopTokens(ids, torch.cat([top.logprobs for _, top in collected])[order])


def _action_batch(
    teacher: Scorer, rows: TrainingRows, chosen: TeacherMicroBatch, device: torch.device
) -> TokenBatch:
    """Responses up to their last action token; a one-token dummy without ``chosen`` rows."""
    prompts = [rows.teacher_prompt_ids[row] for row in chosen.with_context]
    prompts += [rows.prompt_ids[row] for row in chosen.without_context]
    responses: list[Array] = []
    masks: list[Array] = []
    for row in chosen.with_context + chosen.without_context:
        end = int(np.flatnonzero(rows.action_mask[row])[-1]) + 1
        responses.append(rows.response_ids[row][:end])
        masks.append(rows.action_mask[row][:end])
    return make_token_batch(
        prompts or [[0]], responses or [[0]], masks or [[False]], layout=teacher.layout, device=device
    )


def weigh_tokens(
    tokens: ResponseTokens,
    scores: TeacherScores,
    settings: HindsightSection,
    lambda_: float,
    *,
    seed: Sequence[int],
    gather: Gather,
) -> tuple[WeightedTokens, dict[str, float]]:
    """The teacher's weights and what they make of the advantages, with the metrics of what made the weights.

    ``seed`` decides where `shuffle` moves the weights, ``gather`` as in `teacher_weights`.
    """
    if settings.weight == "action_probability":
        weights, metrics = action_weights(
            tokens.advantages,
            scores.with_context,
            tokens.selected,
            tokens.row_ids,
            weight_clip=settings.weight_clip,
        )
    else:
        weights, metrics = _log_ratio_weights(tokens, scores, settings, seed=seed, gather=gather)
    base = scores.without_context if settings.baseline == "teacher" else tokens.old_logprobs
    log_ratios = torch.where(tokens.selected, log_ratio(scores.with_context, base), 0.0)
    return WeightedTokens(
        weighted_advantages(tokens.advantages, weights, lambda_), weights, log_ratios, scores
    ), metrics


def _log_ratio_weights(
    tokens: ResponseTokens,
    scores: TeacherScores,
    settings: HindsightSection,
    *,
    seed: Sequence[int],
    gather: Gather,
) -> tuple[Tensor, dict[str, float]]:
    generator = None
    if settings.shuffle:
        generator = torch.Generator().manual_seed(random.Random(f"{list(seed)}:shuffle").getrandbits(62))
    return teacher_weights(
        tokens.advantages,
        tokens.old_logprobs,
        scores.with_context,
        tokens.selected & (tokens.advantages != 0.0),
        weight_clip=settings.weight_clip,
        baseline=settings.baseline,
        teacher_logprobs_without_context=scores.without_context,
        center=settings.center,
        step_ids=tokens.row_ids,
        shuffle=generator,
        gather=gather,
    )


def report_log_ratios(
    rows: TrainingRows, tokens: ResponseTokens, weighted: WeightedTokens, report: LearnerReport
) -> None:
    """Adds the log-ratio's two parts, over compared tokens, and its size by source of evidence.

    A row's log-ratio counts for every source in its context: ``teacher_abs_log_ratio/<source>``.
    """
    assert weighted.scores is not None
    scores = weighted.scores
    effects, without_context = log_ratio_parts(
        tokens.old_logprobs, scores.with_context, scores.without_context
    )
    for name, part in (("context_effect", effects), ("log_ratio_without_context", without_context)):
        own = part[scores.compared]
        report.add_mean(f"teacher_{name}", float(own.sum()), own.numel())
        report.add_mean(f"teacher_abs_{name}", float(own.abs().sum()), own.numel())
    report.sums["teacher_num_compared_tokens"] += float(scores.compared.sum())
    sizes = weighted.log_ratios.abs()
    for source in sorted({source for sources in rows.evidence_sources for source in sources}):
        has_source = torch.tensor([source in sources for sources in rows.evidence_sources])
        selected = tokens.selected & tokens.of_rows(has_source)
        report.add_mean(
            f"teacher_abs_log_ratio/{source}", float(sizes[selected].sum()), float(selected.sum())
        )


def num_teacher_tokens(plan: LearnerPlan) -> int:
    """Prompt and response tokens of all rows that the teacher scores, once for each time."""
    with_context = [row for rows in plan.teacher_micro_batches for row in rows.with_context]
    compared = [row for rows in plan.teacher_micro_batches for row in rows.without_context]
    return int(plan.rows.num_teacher_tokens[with_context].sum() + plan.rows.num_tokens[compared].sum())

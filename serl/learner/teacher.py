"""The hindsight teacher: a copy of the policy that reads evidence beside the prompt.

The teacher scores exactly the ids that were sampled, at the temperature of sampling. What the student thought
of them are the log-probs that its sampler recorded (SERL, arXiv 2605.19447), so the student is not run again.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from serl.batch.packing import LearnerPlan, MicroBatch
from serl.config import HindsightSection
from serl.hindsight.lambda_schedule import effective_lambda
from serl.hindsight.teacher_weights import (
    Gather,
    log_ratio,
    log_ratio_parts,
    teacher_weights,
    weighted_advantages,
)
from serl.learner.parallel import named_weights
from serl.learner.report import LearnerReport
from serl.learner.response_tokens import ResponseTokens
from serl.learner.rl_module import CausalLMModule
from serl.learner.token_batch import TokenBatch, make_token_batch
from serl.types import TrainingRow

Forward = Callable[[CausalLMModule, TokenBatch], dict[str, Tensor]]


def teacher_lambda(settings: HindsightSection, weights_seq_no: int) -> float:
    """λ of update ``weights_seq_no``; 0 without hindsight. At 0 nothing of the teacher is needed."""
    if not settings.enabled:
        return 0.0
    return effective_lambda(settings.mixing_lambda, settings.lambda_decay_steps, weights_seq_no)


def copy_policy(policy: CausalLMModule) -> CausalLMModule:
    """A frozen copy of an unsharded ``policy``."""
    return copy.deepcopy(policy).requires_grad_(False)


@torch.no_grad()
def copy_weights(source: CausalLMModule, target: CausalLMModule) -> None:
    """Copies all weights; shards stay where they are."""
    targets = named_weights(target.model)
    for name, tensor in named_weights(source.model).items():
        targets[name].copy_(tensor)


def is_sync_step(settings: HindsightSection, weights_seq_no: int) -> bool:
    """Whether the teacher takes over the policy's weights before update ``weights_seq_no``."""
    return weights_seq_no % settings.teacher_sync_interval == 0


def context_free_rows(
    samples: Sequence[TrainingRow],
    settings: HindsightSection,
    recorded: Collection[str],
    seed: Sequence[int],
) -> list[int]:
    """Indices of the rows that the teacher also scores without the context.

    With ``baseline: teacher`` all that have a teacher prompt. Else the gap's two parts are metrics only, and
    a random ``log_ratio_sample_rows`` of them will do, first those of the trajectories ``recorded``.
    """
    rows = [index for index, sample in enumerate(samples) if sample.teacher_prompt_ids]
    if settings.baseline == "teacher":
        return rows
    random.Random(f"{list(seed)}:drift").shuffle(rows)
    rows.sort(key=lambda index: samples[index].trajectory_id not in recorded)
    return rows[: settings.log_ratio_sample_rows]


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """The teacher's log-probs of the action tokens of rows with a teacher prompt, [T], elsewhere 0.

    ``without_context`` is known where ``compared`` is true.
    """

    with_context: Tensor
    without_context: Tensor
    compared: Tensor


@dataclass(frozen=True, slots=True)
class WeightedTokens:
    """What the teacher made of T response tokens.

    ``advantages`` enter the loss; ``weights`` are 1 where the teacher had no say, and ``log_ratios``, before
    centring, are 0 there. ``scores`` None: the teacher was not asked.
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
    teacher: CausalLMModule, plan: LearnerPlan, tokens: ResponseTokens, forward: Forward
) -> TeacherScores:
    """Two forward passes for compared rows, one for other rows with a teacher prompt, none for the rest.

    Rows whose samples have ``teacher_logprobs`` keep those.
    """

    def scored(micro_batches: Iterable[MicroBatch], with_context: bool) -> tuple[Tensor, Tensor]:
        logprobs = torch.zeros_like(tokens.old_logprobs)
        known = torch.zeros_like(tokens.selected)
        for rows in micro_batches:
            samples = [plan.samples[row] for row in rows]
            batch = _action_batch(teacher, samples, with_context, logprobs.device)
            values = forward(teacher, batch)["logprobs"]
            if rows:
                positions = tokens.positions(rows)
                actions = positions[tokens.selected[positions]]
                logprobs[actions] = values
                known[actions] = True
        return logprobs, known

    with_context, _ = scored(plan.teacher_micro_batches, with_context=True)
    is_known = torch.tensor([sample.teacher_logprobs is not None for sample in plan.samples])
    known = list(chain.from_iterable(sample.teacher_logprobs or () for sample in plan.samples))
    with_context[tokens.selected & tokens.of_rows(is_known)] = torch.tensor(known, device=with_context.device)
    without_context, compared = scored(plan.context_free_micro_batches, with_context=False)
    return TeacherScores(with_context, without_context, compared)


def action_logprobs(tokens: ResponseTokens, scores: TeacherScores) -> list[list[float]]:
    """The teacher's log-probs of each sample's action tokens, with context; empty for unselected samples."""
    return [
        scores.with_context[start:end][tokens.selected[start:end]].tolist()
        for start, end in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)
    ]


def _action_batch(
    teacher: CausalLMModule, samples: Sequence[TrainingRow], with_context: bool, device: torch.device
) -> TokenBatch:
    """Responses up to their last action token; a one-token dummy without ``samples``."""
    ends = [len(s.action_mask) - s.action_mask[::-1].index(True) for s in samples]
    prompts = [(s.teacher_prompt_ids or []) if with_context else s.prompt_ids for s in samples]
    return make_token_batch(
        prompts or [[0]],
        [sample.response_ids[:end] for sample, end in zip(samples, ends, strict=True)] or [[0]],
        [sample.action_mask[:end] for sample, end in zip(samples, ends, strict=True)] or [[False]],
        layout=teacher.layout,
        share_prefix=teacher.shares_prefix,
        device=device,
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
    """The teacher's weights and what they make of the advantages, with the metrics of `teacher_weights`.

    ``seed`` decides where `shuffle` moves the weights, ``gather`` as in `teacher_weights`.
    """
    generator = None
    if settings.shuffle:
        generator = torch.Generator().manual_seed(random.Random(f"{list(seed)}:shuffle").getrandbits(62))
    weights, metrics = teacher_weights(
        tokens.advantages,
        tokens.old_logprobs,
        scores.with_context,
        tokens.selected,
        weight_clip=settings.weight_clip,
        baseline=settings.baseline,
        teacher_logprobs_without_context=scores.without_context,
        center=settings.center,
        step_ids=tokens.row_ids,
        shuffle=generator,
        gather=gather,
    )
    base = scores.without_context if settings.baseline == "teacher" else tokens.old_logprobs
    log_ratios = torch.where(tokens.selected, log_ratio(scores.with_context, base), 0.0)
    return WeightedTokens(
        weighted_advantages(tokens.advantages, weights, lambda_), weights, log_ratios, scores
    ), metrics


def report_log_ratios(
    samples: Sequence[TrainingRow], tokens: ResponseTokens, weighted: WeightedTokens, report: LearnerReport
) -> None:
    """Adds the gap's two parts, over compared tokens, and its size by source of evidence.

    A row's gap counts for every source in its context: ``teacher_abs_log_ratio/<source>``.
    """
    assert weighted.scores is not None
    scores = weighted.scores
    effects, log_ratios_without_context = log_ratio_parts(
        tokens.old_logprobs, scores.with_context, scores.without_context
    )
    for name, part in (("feedback_effect", effects), ("drift", log_ratios_without_context)):
        own = part[scores.compared]
        report.add_mean(f"teacher_{name}", float(own.sum()), own.numel())
        report.add_mean(f"teacher_abs_{name}", float(own.abs().sum()), own.numel())
    report.sums["teacher_num_compared_tokens"] += float(scores.compared.sum())
    sizes = weighted.log_ratios.abs()
    for source in sorted({source for sample in samples for source in sample.evidence_sources}):
        rows = [source in sample.evidence_sources for sample in samples]
        of_source = tokens.selected & tokens.of_rows(torch.tensor(rows))
        report.add_mean(
            f"teacher_abs_log_ratio/{source}", float(sizes[of_source].sum()), float(of_source.sum())
        )


def num_teacher_tokens(plan: LearnerPlan) -> int:
    """Prompt and response tokens of all rows that the teacher scores, once for each time."""
    weighted = [plan.samples[row] for rows in plan.teacher_micro_batches for row in rows]
    compared = [plan.samples[row] for rows in plan.context_free_micro_batches for row in rows]
    return sum(s.num_teacher_tokens for s in weighted) + sum(s.num_tokens for s in compared)

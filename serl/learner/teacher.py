"""The hindsight teacher: a copy of the policy that reads evidence beside the prompt.

The teacher scores exactly the ids that were sampled. What the student thought of them are the log-probs that
its sampler recorded (SERL, arXiv 2605.19447), so the student is not run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from serl.buffer.packing import LearnerPlan
from serl.config import HindsightSection
from serl.hindsight.lambda_schedule import effective_lambda
from serl.hindsight.teacher_weights import teacher_weights
from serl.learner.parallel import named_weights
from serl.learner.response_tokens import ResponseTokens
from serl.learner.rl_module import CausalLMModule
from serl.learner.token_batch import TokenBatch, make_token_batch

Forward = Callable[[CausalLMModule, TokenBatch], dict[str, Tensor]]


def teacher_lambda(settings: HindsightSection, update_step: int) -> float:
    """λ of update ``update_step``; 0 without hindsight. At 0 nothing of the teacher is needed."""
    if not settings.enabled:
        return 0.0
    return effective_lambda(settings.mixing_lambda, settings.lambda_decay_steps, update_step)


def copy_policy(policy: CausalLMModule) -> CausalLMModule:
    """A frozen copy of an unsharded ``policy``."""
    return copy.deepcopy(policy).requires_grad_(False)


@torch.no_grad()
def copy_weights(source: CausalLMModule, target: CausalLMModule) -> None:
    """Copies all weights; shards stay where they are."""
    targets = named_weights(target.model)
    for name, tensor in named_weights(source.model).items():
        targets[name].copy_(tensor)


def is_sync_step(settings: HindsightSection, update_step: int) -> bool:
    """Whether the teacher takes over the policy's weights before update ``update_step``."""
    return update_step % settings.teacher_sync_interval == 0


@torch.no_grad()
def score_actions(
    teacher: CausalLMModule, plan: LearnerPlan, tokens: ResponseTokens, forward: Forward
) -> Tensor:
    """The teacher's log-probs, [T]: of the action tokens of rows with a teacher prompt, elsewhere 0."""
    logprobs = torch.zeros_like(tokens.old_logprobs)
    for micro_batch in plan.teacher_micro_batches:
        samples = [plan.samples[row] for row in micro_batch]
        masks = [sample.action_mask for sample in samples]
        batch = make_token_batch(
            [sample.teacher_prompt_ids or [] for sample in samples] or [[0]],
            [sample.response_ids for sample in samples] or [[0]],
            masks or [[False]],
            layout=teacher.layout,
            share_prefix=teacher.shares_prefix,
            device=logprobs.device,
        )
        scored = forward(teacher, batch)["logprobs"]
        if micro_batch:
            positions = tokens.positions(micro_batch)
            logprobs[positions[tokens.selected[positions]]] = scored
    return logprobs


def weigh_advantages(
    tokens: ResponseTokens, teacher_logprobs: Tensor, lambda_: float, settings: HindsightSection
) -> tuple[Tensor, dict[str, float]]:
    """Token advantages [T] with the teacher's weights mixed in, and the metrics of `teacher_weights`."""
    return teacher_weights(
        tokens.advantages,
        tokens.old_logprobs,
        teacher_logprobs,
        tokens.selected,
        effective_lambda=lambda_,
        weight_clip=settings.weight_clip,
    )

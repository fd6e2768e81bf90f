"""The loss of one micro-batch: the policy loss of the config and the terms that may be added to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from serl.config import LossSection
from serl.hindsight.distillation import distill_loss
from serl.learner.loss_terms.entropy import entropy_bonus
from serl.learner.loss_terms.importance import truncated_importance_weights
from serl.learner.loss_terms.kl import kl_loss
from serl.learner.losses import Denominators, LossTokens, policy_loss
from serl.learner.token_batch import Comparison
from serl.learner.token_scores import TokenScores


@dataclass(frozen=True, slots=True)
class DistilledTokens:
    """M tokens, what they are compared with, and their ``gates`` [M], without gradient.

    ``num_tokens``: as in `distill_loss`.
    """

    comparison: Comparison
    gates: Tensor
    coefficient: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class LossBatch:
    """What the log-probs of T response tokens are compared with; every tensor is [T].

    ``sampler_logprobs`` are those the sampler recorded, ``old_logprobs`` what the ratio is taken to: the
    same, or with a truncated importance sampling cap the policy's own before the update.
    ``reference_logprobs`` are those of the policy that the run began with (None: no KL term). ``row_ids``:
    0 … rows − 1. ``distilled``: those of the tokens that are compared with the teacher's (None: none).
    """

    sampler_logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    reference_logprobs: Tensor | None
    row_ids: Tensor
    denominators: Denominators
    distilled: DistilledTokens | None = None


def compute_loss(
    scores: TokenScores, batch: LossBatch, section: LossSection
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of ``scores`` [T], with gradient, and its metrics, token sums over the denominators.

    Those of `distill_loss` are sums alone.

    Where sampler and old policy differ, truncated importance weights correct for it (decoupled PPO, arXiv
    2110.00641).
    """
    weights, metrics = None, {}
    if section.truncated_importance_sampling_cap is not None:
        weights, metrics = truncated_importance_weights(
            batch.old_logprobs,
            batch.sampler_logprobs,
            batch.denominators,
            cap=section.truncated_importance_sampling_cap,
        )
    tokens = LossTokens(
        logprobs=scores.logprobs,
        old_logprobs=batch.old_logprobs,
        advantages=batch.advantages,
        row_ids=batch.row_ids,
        denominators=batch.denominators,
        aggregation=section.aggregation,
        importance_weights=weights,
    )
    loss, own = policy_loss(tokens, section)
    metrics = metrics | own
    if batch.reference_logprobs is not None:
        term, own = kl_loss(
            tokens,
            batch.reference_logprobs,
            estimator=section.kl_estimator,
            coefficient=section.kl_coefficient,
        )
        loss, metrics = loss + term, metrics | own
    if section.entropy_coefficient > 0.0:
        term, _ = entropy_bonus(tokens, scores.entropies, coefficient=section.entropy_coefficient)
        loss = loss + term
    if batch.distilled is not None:
        assert scores.divergences is not None
        distilled = batch.distilled
        term, own = distill_loss(
            scores.divergences,
            distilled.gates,
            coefficient=distilled.coefficient,
            num_tokens=distilled.num_tokens,
        )
        loss, metrics = loss + term, metrics | own
    return loss, metrics

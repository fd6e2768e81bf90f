"""What the policy's log-probs are held against in one update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from serl.batch.packing import MicroBatch, Minibatch
from serl.learner.losses import Denominators, truncated_importance_weights
from serl.learner.report import LearnerReport
from serl.learner.response_tokens import ResponseTokens


@dataclass(frozen=True, slots=True)
class LossTargets:
    """``advantages`` [T] with teacher weights; ``old_logprobs`` [T], what the loss's ratio is taken to.

    The latter are the sampler's, or with an importance cap the policy's own before the update; the gap
    between the two then is an importance weight (decoupled PPO, arXiv 2110.00641). ``reference_logprobs`` [T]
    are those of the policy that the run began with; None without a KL loss.
    """

    tokens: ResponseTokens
    advantages: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    max_response_length: int

    def micro_batch(
        self,
        rows: MicroBatch,
        minibatch: Minibatch,
        row_ids: Tensor,
        truncated_importance_sampling_cap: float | None,
    ) -> dict[str, Any]:
        """The fields of `LossTokens` for ``rows`` (but for the log-probs), ``reference_logprobs``,
        ``denominators``, and ``metrics``."""
        positions = self.tokens.positions(rows)
        old_logprobs = self.old_logprobs[positions]
        denominators = Denominators(minibatch.num_loss_tokens, minibatch.num_rows, self.max_response_length)
        weights, metrics = None, {}
        if truncated_importance_sampling_cap is not None:
            weights, metrics = truncated_importance_weights(
                old_logprobs,
                self.tokens.old_logprobs[positions],
                denominators,
                cap=truncated_importance_sampling_cap,
            )
        return {
            "old_logprobs": old_logprobs,
            "advantages": self.advantages[positions],
            "row_ids": row_ids,
            "importance_weights": weights,
            "reference_logprobs": None
            if self.reference_logprobs is None
            else self.reference_logprobs[positions],
            "denominators": denominators,
            "metrics": metrics,
        }

    def report_mismatch(self, rows: MicroBatch, logprobs: Tensor, report: LearnerReport) -> None:
        """Adds |sampler's − learner's log-prob| before any update of the weights.

        ``train_inference_mismatch`` is over all tokens. ``train_inference_mismatch_on_policy``, over those
        that the newest weights sampled, what both disagree about for the same weights: it should be near 0.
        """
        positions = self.tokens.positions(rows)
        gap = (self.tokens.old_logprobs[positions] - logprobs).abs()
        fresh = gap[self.tokens.fresh[positions]]
        report.add_mean("train_inference_mismatch", float(gap.sum()), gap.numel())
        report.add_mean("train_inference_mismatch_on_policy", float(fresh.sum()), fresh.numel())
        if fresh.numel():
            name = "train_inference_mismatch_on_policy_max"
            report.maxima[name] = max(report.maxima.get(name, 0.0), float(fresh.max()))

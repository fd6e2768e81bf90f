"""What the policy's log-probs are compared with in one update."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from serl.batch.packing import MicroBatch, Minibatch
from serl.learner.loss import LossBatch
from serl.learner.losses import Denominators
from serl.learner.report import LearnerReport
from serl.learner.response_tokens import ResponseTokens


@dataclass(frozen=True, slots=True)
class LossTargets:
    """``advantages`` with teacher weights, ``old_logprobs``, ``reference_logprobs``, [T]: see `LossBatch`."""

    tokens: ResponseTokens
    advantages: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    max_response_length: int

    def micro_batch(self, rows: MicroBatch, minibatch: Minibatch, row_ids: Tensor) -> LossBatch:
        """The targets of the tokens of ``rows``, a part of ``minibatch``."""
        positions = self.tokens.positions(rows)
        reference = self.reference_logprobs
        return LossBatch(
            sampler_logprobs=self.tokens.old_logprobs[positions],
            old_logprobs=self.old_logprobs[positions],
            advantages=self.advantages[positions],
            reference_logprobs=None if reference is None else reference[positions],
            row_ids=row_ids,
            denominators=Denominators(
                minibatch.num_loss_tokens, minibatch.num_rows, self.max_response_length
            ),
        )

    def report_mismatch(self, rows: MicroBatch, logprobs: Tensor, report: LearnerReport) -> None:
        """Adds |sampler's − learner's log-prob| before any update of the weights.

        ``train_inference_mismatch`` is over all tokens; ``train_inference_mismatch_on_policy``, over those
        that the newest weights sampled, is what both disagree about for the same weights: near 0.
        """
        positions = self.tokens.positions(rows)
        mismatch = (self.tokens.old_logprobs[positions] - logprobs).abs()
        on_policy = mismatch[self.tokens.on_policy[positions]]
        report.add_mean("train_inference_mismatch", float(mismatch.sum()), mismatch.numel())
        report.add_mean("train_inference_mismatch_on_policy", float(on_policy.sum()), on_policy.numel())
        if on_policy.numel():
            name = "train_inference_mismatch_on_policy_max"
            report.maxima[name] = max(report.maxima.get(name, 0.0), float(on_policy.max()))

"""What the policy's log-probs are compared with in one update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serl.batch.packing import MicroBatch, Minibatch
from serl.learner.distill_targets import DistillTargets
from serl.learner.loss import LossBatch
from serl.learner.losses import Denominators
from serl.learner.report import LearnerReport, read_once
from serl.learner.response_tokens import ResponseTokens


@dataclass(frozen=True, slots=True)
class LossTargets:
    """``advantages`` with teacher weights, ``old_logprobs``, ``reference_logprobs``, [T]: see `LossBatch`.

    ``distilled`` is None if no token is.
    """

    tokens: ResponseTokens
    advantages: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    max_response_length: int
    distilled: DistillTargets | None

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
            distilled=None if self.distilled is None else self.distilled.loss_tokens(rows, minibatch),
        )

    def report_mismatch(self, rows: MicroBatch, logprobs: Tensor, report: LearnerReport) -> None:
        """Adds |sampler's − learner's log-prob| before any update of the weights.

        ``train_inference_mismatch`` is over all tokens; ``train_inference_mismatch_on_policy``, over those
        that the newest weights sampled, is what both disagree about for the same weights: near 0.
        """
        positions = self.tokens.positions(rows)
        mismatch = (self.tokens.old_logprobs[positions] - logprobs).abs()
        is_on_policy = self.tokens.on_policy[positions]
        on_policy = torch.where(is_on_policy, mismatch, 0.0)
        read = read_once(
            {
                "all": mismatch.sum(),
                "on_policy": on_policy.sum(),
                "num_on_policy": is_on_policy.sum(),
                "greatest": on_policy.max(),
            }
        )
        report.add_mean("train_inference_mismatch", read["all"], mismatch.numel())
        report.add_mean("train_inference_mismatch_on_policy", read["on_policy"], read["num_on_policy"])
        if read["num_on_policy"]:
            name = "train_inference_mismatch_on_policy_max"
            report.maxima[name] = max(report.maxima.get(name, 0.0), read["greatest"])

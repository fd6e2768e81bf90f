"""What the distilled tokens of an update are drawn to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serl.batch.packing import MicroBatch, Minibatch
from serl.batch.rows import Array
from serl.config.distill import DistillSection
from serl.hindsight.distillation import TopTokens, gates
from serl.hindsight.teacher_weights import log_ratio
from serl.learner.loss import DistilledTokens
from serl.learner.response_tokens import ResponseTokens
from serl.learner.teacher import TeacherScores
from serl.learner.token_batch import Comparison


@dataclass(frozen=True, slots=True)
class DistillTargets:
    """The teacher's ``top`` tokens and ``gates`` [S] for S of T response tokens.

    ``places`` [T], on the host: which of the S a token is, or -1.
    """

    settings: DistillSection
    coefficient: float
    tokens: ResponseTokens
    top: TopTokens
    gates: Tensor
    places: Array

    @classmethod
    def of(
        cls, settings: DistillSection, coefficient: float, tokens: ResponseTokens, scores: TeacherScores
    ) -> DistillTargets | None:
        """None if no token is distilled."""
        if scores.top is None or not len(scores.top.ids):
            return None
        distilled = tokens.distilled
        log_ratios = log_ratio(scores.with_context, tokens.old_logprobs)[distilled]
        places = np.where(distilled.cpu().numpy(), distilled.cumsum(0).cpu().numpy() - 1, -1)
        weights = gates(log_ratios, settings.gate, settings.gate_sharpness)
        return cls(settings, coefficient, tokens, scores.top, weights, places)

    def loss_tokens(self, rows: MicroBatch, minibatch: Minibatch) -> DistilledTokens | None:
        """The distilled ones of all response tokens of ``rows``; None if there are none."""
        places = self.places[self.tokens.indices(rows)]
        (among,) = np.nonzero(places >= 0)
        if not len(among):
            return None
        chosen = self._on_device(places[among])
        teacher = TopTokens(self.top.ids[chosen], self.top.logprobs[chosen])
        return DistilledTokens(
            comparison=Comparison(self._on_device(among), teacher, self.settings.divergence),
            gates=self.gates[chosen],
            coefficient=self.coefficient,
            num_tokens=minibatch.num_distilled_tokens,
        )

    def _on_device(self, indices: Array) -> Tensor:
        return torch.from_numpy(indices).to(self.gates.device)

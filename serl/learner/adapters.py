"""Teachers and references that are the policy's own model with other adapters, or with none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from serl.learner.rl_module import POLICY, CausalLMModule
from serl.learner.token_batch import Layout, TokenBatch
from serl.learner.token_scores import TokenScores
from serl.models.lora import adapter_weights
from serl.private.peft import selected_adapter


class Scorer(Protocol):
    """What scores sampled tokens: a policy, a copy of it, or its model with other adapters."""

    @property
    def layout(self) -> Layout:
        """Of the batches that it takes."""
        ...

    def trained_weights(self) -> dict[str, Tensor]:
        """See `CausalLMModule.trained_weights`."""
        ...

    def __call__(self, batch: TokenBatch) -> TokenScores: ...


@dataclass(frozen=True, slots=True)
class OtherAdapters:
    """The ``policy`` as it answers with the named adapters, or, with None, as it was before any training.

    Beside the policy it takes the memory of these adapters alone. Only for passes without gradients: the
    policy's adapters are back when one is over.
    """

    policy: CausalLMModule
    adapters: str | None

    @property
    def layout(self) -> Layout:
        return self.policy.layout

    def trained_weights(self) -> dict[str, Tensor]:
        return {} if self.adapters is None else adapter_weights(self.policy.model, self.adapters)

    def __call__(self, batch: TokenBatch) -> TokenScores:
        with selected_adapter(self.policy.model, self.adapters, afterwards=POLICY):
            return self.policy(batch)

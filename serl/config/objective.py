"""The sections of what is maximised: ``advantage`` and ``loss``.

Estimators and losses are registered functions (`serl.config.registry`), whose options stand under ``args``.
What a section leaves at its defaults is not looked up, so that it is read without importing torch.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serl.config.problems import contradiction, validation_error
from serl.config.registry import ESTIMATORS, LOSSES, Registry
from serl.config.section import Section

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
KLEstimator = Literal["k1", "k2", "k3"]


class AdvantageSection(Section):
    """Group-relative advantages."""

    estimator: str = "grpo"
    """A registered estimator, or one of your own as ``package.module:name``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Options of the estimator; those left out have its defaults."""
    normalize_by_length: bool = False
    """The reward of an episode is divided by its number of steps: of two successes the shorter is better."""
    negative_scale: float = Field(default=1.0, ge=0.0)
    """Factor of negative advantages; less than 1 discourages less than it encourages."""

    @model_validator(mode="after")
    def _estimator_exists(self) -> Self:
        _check_entry(self, ESTIMATORS, "estimator", self.estimator, self.args)
        return self


class LossSection(Section):
    """The policy loss, and two terms that may be added to it.

    The terms are aggregated like the loss, over all rows: rows without an advantage are then computed too.
    """

    name: str = "ppo_clip"
    """A registered loss, or one of your own as ``package.module:name``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Options of the loss; those left out have its defaults."""
    aggregation: Aggregation = "token-mean"
    """From tokens to one number: the mean over all tokens; the mean over responses of their sums, of their
    means, or of their sums over ``rollout.max_response_length`` (Dr.GRPO)."""
    truncated_importance_sampling_cap: float | None = Field(default=None, gt=0.0)
    """Bound of the weights that correct for tokens which older weights sampled (decoupled PPO); costs a
    forward pass. Null: the loss's ratio is taken to the sampler's log-probabilities."""
    kl_coefficient: float = Field(default=0.0, ge=0.0)
    """Times the KL to the policy that the run began with is added; 0: no such policy in memory."""
    kl_estimator: KLEstimator = "k3"
    """Schulman's estimator of that KL."""
    entropy_coefficient: float = Field(default=0.0, ge=0.0)
    """Times the entropy of the policy in nats is subtracted."""

    @property
    def trains_every_row(self) -> bool:
        """Whether rows without an advantage have a gradient."""
        return self.kl_coefficient > 0.0 or self.entropy_coefficient > 0.0

    @model_validator(mode="after")
    def _loss_exists(self) -> Self:
        if _check_entry(self, LOSSES, "name", self.name, self.args):
            only = LOSSES.get(self.name).traits["aggregation"]
            if only not in (None, self.aggregation):
                sentence = (
                    f"loss.name = {self.name} contradicts loss.aggregation = {self.aggregation}: it is "
                    f"defined with one aggregation only; set loss.aggregation: {only}"
                )
                raise validation_error(type(self).__name__, [contradiction(sentence)])
        return self


def _check_entry(
    section: Section, registry: Registry, name_key: str, name: str, args: dict[str, Any]
) -> bool:
    """Whether ``name`` was looked up. Raises ValidationError if it, or one of its args, is wrong."""
    if name == type(section).model_fields[name_key].default and not args:
        return False
    if problems := registry.problems(name, args, name_at=(name_key,), args_at=("args",)):
        raise validation_error(type(section).__name__, problems)
    return True

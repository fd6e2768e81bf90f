"""What a loss is made from: tokens and their aggregation, importance weights, and terms that may be added."""

from serl.learner.loss_terms.aggregation import Denominators, LossTokens
from serl.learner.loss_terms.entropy import entropy_bonus
from serl.learner.loss_terms.importance import truncated_importance_weights
from serl.learner.loss_terms.kl import kl_loss, kl_per_token

__all__ = [
    "Denominators",
    "LossTokens",
    "entropy_bonus",
    "kl_loss",
    "kl_per_token",
    "truncated_importance_weights",
]

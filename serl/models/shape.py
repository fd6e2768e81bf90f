"""What of a model's config.json says how much memory it takes; nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class UnknownShapeError(ValueError):
    """A config.json that does not say how large the model is."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of ``num_layers`` layers with gated MLPs; all sizes are numbers of elements.

    ``mlp_width`` is that of one expert where there are ``num_experts``, of which a token passes through
    ``experts_per_token``. ``counted_weights``: of the model's files, where they are at hand. A weight has
    ``bytes_per_weight`` in these.
    """

    num_layers: int
    width: int
    mlp_width: int
    vocabulary: int
    query_width: int
    key_width: int
    ties_embeddings: bool
    num_experts: int = 1
    experts_per_token: int = 1
    counted_weights: int | None = None
    bytes_per_weight: int = 4

    @property
    def num_weights(self) -> int:
        """As counted, or what the matrices add up to; vectors are less than a thousandth of a large model."""
        if self.counted_weights is not None:
            return self.counted_weights
        attention = 2 * self.width * (self.query_width + self.key_width)
        router = self.width * self.num_experts if self.num_experts > 1 else 0
        mlps = 3 * self.width * self.mlp_width * self.num_experts
        return self.num_layers * (attention + router + mlps) + self.outside_layers

    @property
    def head_weights(self) -> int:
        """Of the output layer, which may be those of the embeddings."""
        return self.vocabulary * self.width

    @property
    def outside_layers(self) -> int:
        """Weights of embeddings and output layer."""
        return self.head_weights * (1 if self.ties_embeddings else 2)

    @property
    def layer_weights(self) -> int:
        return max(0, self.num_weights - self.outside_layers) // self.num_layers

    def num_adapter_weights(self, rank: int, targets: Sequence[str]) -> int:
        """Of adapters of ``rank`` in the layers called one of ``targets``, as Llama calls them; none: in all.

        Experts have none; layers of other names count as square.
        """
        attention = {
            "q_proj": self.width + self.query_width,
            "k_proj": self.width + self.key_width,
            "v_proj": self.width + self.key_width,
            "o_proj": self.query_width + self.width,
        }
        mlp = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.width + self.mlp_width)
        known = attention | (mlp if self.num_experts == 1 else {})
        sums = [known.get(target, 2 * self.width) for target in targets or known]
        return self.num_layers * rank * sum(sums)

    @property
    def active_mlp_width(self) -> int:
        """Of all MLPs that a token passes through in one layer."""
        return self.mlp_width * self.experts_per_token

    @classmethod
    def of(cls, config: Mapping[str, Any], counted_weights: int | None = None) -> ModelShape:
        """From the contents of a config.json. Raises UnknownShapeError if sizes are missing in it."""
        dtype = str(config.get("dtype") or config.get("torch_dtype"))
        config = config.get("text_config") or config
        try:
            width, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head_width = int(config.get("head_dim") or width // num_heads)
            num_experts = count_experts(config)
            expert_width = config.get("moe_intermediate_size") if num_experts > 1 else None
            return cls(
                num_layers=int(config["num_hidden_layers"]),
                width=width,
                mlp_width=int(expert_width or config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                query_width=num_heads * head_width,
                key_width=int(config.get("num_key_value_heads") or num_heads) * head_width,
                ties_embeddings=bool(config.get("tie_word_embeddings", True)),
                num_experts=num_experts,
                experts_per_token=int(config.get("num_experts_per_tok") or 1),
                counted_weights=counted_weights,
                bytes_per_weight=2 if dtype in ("bfloat16", "float16") else 4,
            )
        except KeyError as error:
            raise UnknownShapeError(f"config.json has no {error.args[0]}") from error
        except (TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError) as error:
            raise UnknownShapeError(f"config.json has sizes that are none: {error}") from error


def count_experts(config: Mapping[str, Any]) -> int:
    """How many experts a layer has; 1 for a dense model."""
    counts = [config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")]
    return max([1, *(count for count in counts if isinstance(count, int))])

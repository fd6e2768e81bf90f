"""The tiny policy: an untrained Llama that fits the quickstart's one core."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.warm_start.tokenizer import END, PAD, token_id


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """Sizes of the policy. vLLM on CPU wants heads of at least 32 dimensions."""

    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    intermediate_size: int = 384
    max_positions: int = 2048


def build_policy(tokenizer: PreTrainedTokenizerFast, shape: PolicyShape, seed: int) -> LlamaForCausalLM:
    """A float32 Llama with tied embeddings, deterministic by ``seed``.

    Embeddings get a standard deviation of d^-0.5 (logits of unit scale with tied weights), the projections
    that write into the residual stream a small one, so that every layer begins close to the identity.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
        dtype="float32",
    )
    generator = torch.Generator().manual_seed(seed)
    policy = LlamaForCausalLM(config).float()
    std = shape.hidden_size**-0.5
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.dim() < 2:
                continue
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.5 / math.sqrt(2 * shape.num_layers) if is_output else 1.0
            parameter.normal_(0.0, std * scale, generator=generator)
    return policy

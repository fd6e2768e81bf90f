"""Private parts of Hugging Face transformers behind its flash attention, as seen in version 5.19.0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def variable_length_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    implementation: str,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
) -> Tensor:
    """Causal flash attention of sequences one after another, [tokens, heads, width], in low precision.

    The last query of a sequence attends to all of its keys, each query before it to one key less.
    transformers' public way to flash attention has no name of its own for the kernels, only the model's.
    """
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    if torch.is_autocast_enabled(query.device.type):
        lower = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
    borders: dict[str, Any] = {
        "cu_seq_lens_q": query_starts,
        "cu_seq_lens_k": key_starts,
        "max_length_q": longest_query,
        "max_length_k": longest_key,
    }
    return _flash_attention_forward(
        *(query[None], key[None], value[None], None),
        query_length=len(query),
        is_causal=True,
        softmax_scale=scaling,
        attn_implementation=implementation,
        **borders,
    )[0]

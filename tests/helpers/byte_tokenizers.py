"""Tokenizers of one id per byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BYTE_IDS = {character: rank for rank, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def byte_level(
    special_tokens: Sequence[str], chat_template: str | None = None, **options: Any
) -> PreTrainedTokenizerFast:
    """The bytes in the order of their alphabet, then the special tokens; ``options`` say what those mean."""
    tokenizer = Tokenizer(models.BPE(vocab=BYTE_IDS, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special_tokens))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    fast.chat_template = chat_template
    return fast

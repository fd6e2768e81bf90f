"""A byte-level BPE tokenizer whose phrases are single tokens, so that a tiny policy's prompts stay short.

Fixed wording (the system message, the labels of the prompt, the environment's stock phrases) becomes added
tokens; what is left between them is split into words and numbers, which BPE learns from prompts. A thing's
name is a token of its own, apart from its number: what a task names is found by the very same token.
None of the phrases is special: decoding keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from serl.hindsight.context import render_context
from serl.hindsight.evidence import Evidence, StepEvidence

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
RESPONSE_TAGS = ("<think>", "</think>", "<action>", "</action>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}<|user|>{{ message.content }}"
    "{%- elif message.role == 'assistant' -%}<|assistant|>{{ message.content }}<|end|>"
    "{%- else -%}{{ message.content }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
_SPECIAL = [PAD, END, USER, ASSISTANT]
_WORDS = r" ?[A-Za-z]+| ?\d+|[^\sA-Za-z0-9]+|\s"


def policy_phrases(prompt_phrases: Sequence[str]) -> list[str]:
    """Every phrase that becomes one token: response tags, hindsight's heading, those of the environment."""
    return list(dict.fromkeys([*RESPONSE_TAGS, *hindsight_headings(), *prompt_phrases]))


def hindsight_headings() -> tuple[str, ...]:
    """The fixed texts of a hindsight context: before feedback, before a success, and between the two."""
    feedback, success = (Evidence(name, text="TEXT") for name in ("immediate_feedback", "successful_sample"))
    first, second, both = (
        _context(*parts).split("TEXT") for parts in ((feedback,), (success,), (success, feedback))
    )
    return first[0], second[0], both[1], "\nStep"


def _context(*parts: Evidence) -> str:
    text, _ = render_context(StepEvidence(parts=parts))
    assert text is not None
    return text


def least_vocab_size(prompt_phrases: Sequence[str]) -> int:
    """Entries of a tokenizer that has learned nothing: phrases, special tokens and the 256 bytes."""
    return len(policy_phrases(prompt_phrases)) + len(_SPECIAL) + 256


def build_tokenizer(
    texts: Iterable[str], prompt_phrases: Sequence[str], vocab_size: int, model_max_length: int
) -> PreTrainedTokenizerFast:
    """Learns at most ``vocab_size`` entries (phrases included) from ``texts``."""
    phrases = policy_phrases(prompt_phrases)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(phrases),
        min_frequency=8,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_between_phrases(texts, phrases), trainer)
    backend.add_tokens([AddedToken(text, normalized=False, single_word=_is_word(text)) for text in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a token that is in the vocabulary; raises KeyError for any other."""
    return tokenizer.get_vocab()[token]


def _is_word(phrase: str) -> bool:
    """Whether the phrase may only match whole words: ``use`` is no part of ``mouse``."""
    return phrase[0].isalpha() and phrase[-1].isalpha()


def _between_phrases(texts: Iterable[str], phrases: Sequence[str]) -> Iterable[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    patterns = [rf"\b{re.escape(text)}\b" if _is_word(text) else re.escape(text) for text in longest_first]
    splitter = re.compile("|".join(patterns))
    for text in texts:
        yield from (piece for piece in splitter.split(text) if piece)

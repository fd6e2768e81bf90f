"""Messages to prompt ids through the tokenizer's chat template, within the prompt's length limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from envs.base import PromptParts
from serl.private.transformers import load_tokenizer


class ChatTemplateMissingError(ValueError):
    """The policy's tokenizer does not say how a conversation is written as one text."""


class PromptEncoder:
    """Renders chat messages to the ids the policy is asked with, and its ids back to text.

    ``tokenizer`` is a Hugging Face tokenizer. Raises ChatTemplateMissingError if it has no chat template.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise ChatTemplateMissingError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template: add "
                "chat_template.jinja beside its tokenizer.json, or take the model's instruction-tuned variant"
            )
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, model_dir: str) -> PromptEncoder:
        """The encoder of the policy in the local Hugging Face folder ``model_dir``."""
        return cls(load_tokenizer(model_dir))

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Prompt ids of a conversation, ending where the policy's answer begins."""
        return self.ids(self.render(messages, tools))

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The text of a prompt, special tokens included. Raises whatever the chat template does."""
        return self.tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=True
        )

    def num_tokens(self, text: str) -> int:
        """Tokens of ``text`` alone, without special tokens around it."""
        return len(self.ids(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled ids, for environments and people; special tokens leave no text."""
        return self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def ids(self, text: str) -> list[int]:
        """Ids of ``text``, which writes its special tokens itself, however many there are."""
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def ids_within(self, text: str) -> list[int]:
        """Ids of a ``text`` that something comes before: some tokenizers put a space before a first word."""
        end = self.tokenizer.eos_token
        if end is None:
            return self.ids(text)
        end_ids = self.ids(end)
        return self.ids(end + text)[len(end_ids) :]

    def said(self, response_ids: list[int]) -> tuple[str, str]:
        """What a response says, special tokens included, and the token that ends it ("": there is none)."""
        ended = bool(response_ids) and response_ids[-1] in self._special_ids
        spoken = response_ids[:-1] if ended else response_ids
        return self._raw(spoken), self._raw(response_ids[-1:]) if ended else ""

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def _raw(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# ``continuation``: the ids of the prompt before and the response to it come first. What else a conversation's
# prompt may be after its first: ``rewritten`` by a chat template that writes history otherwise, or ``cut``.
PromptOrigin = Literal["rendered", "continuation", "rewritten", "cut"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits.

    ``num_dropped_turns`` counts the history turns left out to make it fit, ``num_shortened_observations``
    those of a conversation that were shortened for it; in a conversation both stay so, and count once.
    """

    messages: tuple[dict[str, str], ...]
    token_ids: list[int]
    num_dropped_turns: int
    num_shortened_observations: int = 0
    origin: PromptOrigin = "rendered"


def fit_prompt(
    parts: PromptParts,
    render: Callable[[PromptParts], tuple[dict[str, str], ...]],
    encode: Callable[[Sequence[dict[str, str]]], list[int]],
    max_prompt_length: int,
) -> Prompt | None:
    """The prompt of ``parts`` within ``max_prompt_length`` tokens, the oldest history turns dropped first.

    Nothing else is ever cut: None if the prompt is too long even without history.
    """
    for num_dropped_turns in range(len(parts.history) + 1):
        messages = render(replace(parts, history=parts.history[num_dropped_turns:]))
        token_ids = encode(messages)
        if len(token_ids) <= max_prompt_length:
            return Prompt(messages, token_ids, num_dropped_turns)
    return None

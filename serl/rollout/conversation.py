"""A conversation that goes on from a response: the ids before stay, only what is new is tokenised.

    prompt ids + sampled ids ─ the chat template writes the same before what is new ─▶ + ids of what is new
                             └ or it writes history otherwise now: it cannot be continued

A chat template is asked for the text of the whole conversation, with each response as it was sampled. Where
this text begins with the text of the prompt and the response itself, only the rest is tokenised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serl.rollout.prompt import PromptEncoder
from serl.types import Step

ChatMessage = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt that ends where the policy answers; ``text`` is what ``token_ids`` stand for.

    ``messages`` are what it was rendered from.
    """

    token_ids: list[int]
    text: str
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A prompt and the response to it.

    ``token_ids`` are those of both. ``text`` is the prompt's; the response ``said`` this, up to the special
    token ``end`` ("": there is none). ``messages`` include the response.
    """

    token_ids: list[int]
    text: str
    said: str
    end: str
    messages: tuple[ChatMessage, ...]

    @classmethod
    def of(cls, prompt: RenderedPrompt, response_ids: list[int], encoder: PromptEncoder) -> AnsweredPrompt:
        said, end = encoder.said(response_ids)
        messages = (*prompt.messages, {"role": "assistant", "content": said})
        return cls(prompt.token_ids + response_ids, prompt.text, said, end, messages)

    @classmethod
    def of_step(cls, step: Step, encoder: PromptEncoder) -> AnsweredPrompt:
        """The prompt of ``step`` and its response. Raises whatever the chat template does."""
        text = encoder.render(step.messages, step.tools)
        return cls.of(RenderedPrompt(step.prompt_ids, text, step.messages), step.response_ids, encoder)

    def continued(
        self,
        new_messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]],
        encoder: PromptEncoder,
    ) -> RenderedPrompt | None:
        """The prompt with ``new_messages`` behind the response; None if the template rewrites what is before.

        Raises whatever the chat template does.
        """
        messages = (*self.messages, *new_messages)
        text = encoder.render(messages, tools)
        new = self._what_follows(text)
        return None if new is None else self.followed_by(new, text, messages, encoder)

    def followed_by(
        self, new: str, text: str, messages: tuple[ChatMessage, ...], encoder: PromptEncoder
    ) -> RenderedPrompt:
        """The prompt ``text``, which is this one's and ``new`` behind it."""
        return RenderedPrompt(self.token_ids + encoder.ids_within(new), text, messages)

    def _what_follows(self, text: str) -> str | None:
        """What ``text`` adds to prompt and response; None if it does not begin with them.

        White space around a response may be gone, and the token that ended it is not written twice.
        """
        if not text.startswith(self.text):
            return None
        rest = text[len(self.text) :]
        for said in (self.said, self.said.rstrip(), self.said.lstrip(), self.said.strip()):
            if rest.startswith(said):
                return rest[len(said) :].removeprefix(self.end)
        return None

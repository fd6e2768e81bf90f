"""The conversations of one episode as a tree of answers, continued by their tokens.

a request begins with an answered conversation ──────────▶ the answer's ids, and those of what is new
… which the chat template writes otherwise now, or not ──▶ a branch: all of it is tokenised
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serl.gateway.messages import conversation_keys, next_key
from serl.gateway.protocol import ApiError
from serl.rollout.conversation import AnsweredPrompt, ChatMessage, RenderedPrompt
from serl.rollout.prompt import PromptEncoder

logger = logging.getLogger(__name__)

Kind = Literal["start", "continuation", "branch", "template_branch"]


@dataclass(frozen=True, slots=True)
class ConversationPrompt(RenderedPrompt):
    """The prompt of one request.

    ``key`` is what the conversation is known by. ``continues`` is the index of the answer whose tokens it
    begins with. A ``branch`` continues no answer, because the agent changed its history, or one that is
    continued already; a ``template_branch`` has the history of an answer, of which the chat template writes
    something otherwise now, such as without its thinking.
    """

    key: bytes
    continues: int | None
    kind: Kind


@dataclass(slots=True)
class _Answer:
    index: int
    answered: AnsweredPrompt
    is_continued: bool = False


class Conversations:
    """The answers of one episode so far, by what was said before them."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._chats: dict[bytes, list[_Answer]] = {}
        self._texts: list[_Answer] = []

    def chat_prompt(
        self, messages: list[ChatMessage], tools: Sequence[Mapping[str, Any]]
    ) -> ConversationPrompt:
        """The prompt of a chat. Raises ApiError (400) for what the chat template does not take."""
        keys = conversation_keys(messages, tools)
        kind = self._kind_of_root()
        for num_known, answer in self._answers_to(keys):
            kind = "template_branch"
            try:
                prompt = answer.answered.continued(messages[num_known:], tools, self._encoder)
            except Exception as error:  # the template gets what the agent sent instead, and may take that
                _tell_once(repr(error))
                continue
            if prompt is not None:
                return self._continue(answer, prompt, keys[-1])
        text = self._render(messages, tools)
        ids = self._encoder.ids(text)
        return ConversationPrompt(ids, text, tuple(messages), keys[-1], None, kind)

    def text_prompt(self, prompt: str | list[int]) -> ConversationPrompt:
        """The prompt of a completion: ids, or a text, which may begin with an earlier one and its answer."""
        if not isinstance(prompt, str):
            text = self._encoder.decode(prompt)
            return ConversationPrompt(prompt, text, _as_messages(text), b"", None, self._kind_of_root())
        known = [answer for answer in self._texts if prompt.startswith(_text(answer))]
        if known:
            answer = max(known, key=lambda answer: (len(_text(answer)), not answer.is_continued))
            new = prompt[len(_text(answer)) :]
            followed = answer.answered.followed_by(new, prompt, _as_messages(prompt), self._encoder)
            return self._continue(answer, followed, b"")
        ids = self._encoder.ids(prompt)
        return ConversationPrompt(ids, prompt, _as_messages(prompt), b"", None, self._kind_of_root())

    def add_chat(
        self, index: int, prompt: ConversationPrompt, response_ids: list[int], message: ChatMessage
    ) -> None:
        """Keeps answer ``index`` to ``prompt``; ``message`` is what the agent got."""
        key = next_key(prompt.key, message)
        self._chats.setdefault(key, []).append(self._answer(index, prompt, response_ids))

    def add_text(self, index: int, prompt: ConversationPrompt, response_ids: list[int]) -> None:
        """Keeps answer ``index`` to ``prompt`` of a completion."""
        self._texts.append(self._answer(index, prompt, response_ids))

    def _answer(self, index: int, prompt: ConversationPrompt, response_ids: list[int]) -> _Answer:
        return _Answer(index, AnsweredPrompt.of(prompt, response_ids, self._encoder))

    def _answers_to(self, keys: Sequence[bytes]) -> Iterator[tuple[int, _Answer]]:
        """The answers that a conversation has behind it, the last first, with the number of its messages."""
        for num_messages in reversed(range(1, len(keys))):
            answers = self._chats.get(keys[num_messages], [])
            for answer in sorted(answers, key=lambda answer: answer.is_continued):
                yield num_messages, answer

    def _continue(self, answer: _Answer, prompt: RenderedPrompt, key: bytes) -> ConversationPrompt:
        kind: Kind = "branch" if answer.is_continued else "continuation"
        answer.is_continued = True
        return ConversationPrompt(prompt.token_ids, prompt.text, prompt.messages, key, answer.index, kind)

    def _kind_of_root(self) -> Kind:
        return "branch" if self._chats or self._texts else "start"

    def _render(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self._encoder.render(messages, tools)
        except Exception as error:  # a template is anybody's code
            raise ApiError(
                400, f"messages: the model's chat template raised {error!r}", "invalid_value", "messages"
            ) from error


@functools.lru_cache(maxsize=100)
def _tell_once(what: str) -> None:
    logger.warning("the chat template does not take an answer as it was sampled: %s", what)


def _text(answer: _Answer) -> str:
    return answer.answered.text + answer.answered.said


def _as_messages(text: str) -> tuple[ChatMessage, ...]:
    return ({"role": "user", "content": text},)

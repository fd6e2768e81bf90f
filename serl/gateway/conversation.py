"""The conversations of one episode as a tree of answers, continued by their tokens.

    a request begins with an answered conversation ──────────▶ the answer's ids, and those of what is new
    … which the chat template writes otherwise now, or not ──▶ a branch: all of it is tokenised

A chat template is asked for the text of the whole conversation, with each answer as it was sampled. Where
this text begins with the text of the answer's prompt and the answer itself, only the rest is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serl.gateway.messages import ChatMessage, conversation_keys, next_key
from serl.gateway.protocol import ApiError
from serl.rollout.prompt import PromptEncoder

Kind = Literal["start", "continuation", "branch", "template_branch"]


@dataclass(frozen=True, slots=True)
class ConversationPrompt:
    """The prompt of one request.

    ``text`` is what ``token_ids`` stand for, ``messages`` what it was rendered from, ``key`` what the
    conversation is known by. ``continues`` is the index of the answer whose tokens it begins with. A
    ``branch`` continues no answer, because the agent changed its history, or one that is continued already;
    a ``template_branch`` has the history of an answer, of which the chat template writes something otherwise
    now, such as without its thinking.
    """

    token_ids: list[int]
    text: str
    messages: list[ChatMessage]
    key: bytes
    continues: int | None
    kind: Kind


@dataclass(slots=True)
class _Answer:
    """``token_ids``: prompt and response; ``text`` is the prompt's, ``said`` the response's up to ``end``."""

    index: int
    token_ids: list[int]
    text: str
    said: str
    end: str
    messages: list[ChatMessage]
    is_continued: bool = False


class Conversations:
    """The answers of one episode so far, by what was said before them."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._chats: dict[bytes, list[_Answer]] = {}
        self._texts: list[_Answer] = []
        self._special_ids = frozenset(encoder.tokenizer.all_special_ids)

    def chat_prompt(
        self, messages: list[ChatMessage], tools: Sequence[Mapping[str, Any]]
    ) -> ConversationPrompt:
        """The prompt of a chat. Raises ApiError (400) for what the chat template does not take."""
        keys = conversation_keys(messages, tools)
        kind = self._kind_of_root()
        for num_known, answer in self._answers_to(keys):
            kind = "template_branch"
            as_sampled = [*answer.messages, *messages[num_known:]]
            try:
                text = self._render(as_sampled, tools)
            except ApiError:
                continue  # a template that does not take it as it was sampled gets what the agent sent
            new = _what_follows(answer, text)
            if new is not None:
                return self._continue(answer, new, text, as_sampled, keys[-1])
        text = self._render(messages, tools)
        return ConversationPrompt(self._encoder.ids(text), text, messages, keys[-1], None, kind)

    def text_prompt(self, prompt: str | list[int]) -> ConversationPrompt:
        """The prompt of a completion: ids, or a text, which may begin with an earlier one and its answer."""
        if not isinstance(prompt, str):
            text = self._encoder.decode(prompt)
            return ConversationPrompt(prompt, text, _as_messages(text), b"", None, self._kind_of_root())
        known = [answer for answer in self._texts if prompt.startswith(answer.text + answer.said)]
        if known:
            answer = max(known, key=lambda answer: (len(answer.text + answer.said), not answer.is_continued))
            new = prompt[len(answer.text + answer.said) :]
            return self._continue(answer, new, prompt, _as_messages(prompt), b"")
        ids = self._encoder.ids(prompt)
        return ConversationPrompt(ids, prompt, _as_messages(prompt), b"", None, self._kind_of_root())

    def add_chat(
        self, index: int, prompt: ConversationPrompt, response_ids: list[int], answered: ChatMessage
    ) -> None:
        """Keeps answer ``index`` to ``prompt``; ``answered`` is the message that the agent got."""
        key = next_key(prompt.key, answered)
        self._chats.setdefault(key, []).append(self._answer(index, prompt, response_ids))

    def add_text(self, index: int, prompt: ConversationPrompt, response_ids: list[int]) -> None:
        """Keeps answer ``index`` to ``prompt`` of a completion."""
        self._texts.append(self._answer(index, prompt, response_ids))

    def said(self, response_ids: list[int]) -> tuple[str, str]:
        """What a response says, special tokens included, and the token that ends it ("": there is none)."""
        ended = bool(response_ids) and response_ids[-1] in self._special_ids
        spoken = response_ids[:-1] if ended else response_ids
        return self._raw(spoken), self._raw(response_ids[-1:]) if ended else ""

    def _answer(self, index: int, prompt: ConversationPrompt, response_ids: list[int]) -> _Answer:
        said, end = self.said(response_ids)
        messages = [*prompt.messages, {"role": "assistant", "content": said}]
        return _Answer(index, prompt.token_ids + response_ids, prompt.text, said, end, messages)

    def _answers_to(self, keys: Sequence[bytes]) -> Iterator[tuple[int, _Answer]]:
        """The answers that a conversation has behind it, the last first, with the number of its messages."""
        for num_messages in reversed(range(1, len(keys))):
            answers = self._chats.get(keys[num_messages], [])
            for answer in sorted(answers, key=lambda answer: answer.is_continued):
                yield num_messages, answer

    def _continue(
        self, answer: _Answer, new: str, text: str, messages: list[ChatMessage], key: bytes
    ) -> ConversationPrompt:
        kind: Kind = "branch" if answer.is_continued else "continuation"
        answer.is_continued = True
        token_ids = answer.token_ids + self._ids_within(new)
        return ConversationPrompt(token_ids, text, messages, key, answer.index, kind)

    def _ids_within(self, text: str) -> list[int]:
        """Ids of a ``text`` that something comes before: some tokenizers put a space before a first word."""
        end = self._encoder.tokenizer.eos_token
        if end is None:
            return self._encoder.ids(text)
        end_ids = self._encoder.ids(end)
        return self._encoder.ids(end + text)[len(end_ids) :]

    def _kind_of_root(self) -> Kind:
        return "branch" if self._chats or self._texts else "start"

    def _render(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self._encoder.render(messages, tools)
        except Exception as error:  # a template is anybody's code
            raise ApiError(
                400, f"messages: the model's chat template raised {error!r}", "invalid_value", "messages"
            ) from error

    def _raw(self, token_ids: list[int]) -> str:
        tokenizer = self._encoder.tokenizer
        return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _what_follows(answer: _Answer, text: str) -> str | None:
    """What ``text`` adds to prompt and response of ``answer``; None if it does not begin with them.

    White space around a response may be gone, and the token that ended it is not written twice.
    """
    if not text.startswith(answer.text):
        return None
    rest = text[len(answer.text) :]
    for said in (answer.said, answer.said.rstrip(), answer.said.lstrip(), answer.said.strip()):
        if rest.startswith(said):
            return rest[len(said) :].removeprefix(answer.end)
    return None


def _as_messages(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]

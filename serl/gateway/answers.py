"""What a response says, as OpenAI's API writes it: whole, or as a stream of server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serl.gateway.tool_calls import FoundCall
from serl.types import Completion


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled response as an agent sees it; ``token_texts`` has one entry per id."""

    text: str
    calls: Sequence[FoundCall]
    completion: Completion
    token_texts: Sequence[str] = ()

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.calls else self.completion.finish_reason

    def message(self) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.calls:
            said |= {"content": self.text or None, "tool_calls": [_call(call) for call in self.calls]}
        return said

    def logprobs(self) -> dict[str, Any]:
        """Of the sampled tokens, at the temperature that they were sampled at."""
        return {
            "content": [
                {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
                for text, logprob in zip(self.token_texts, self.completion.logprobs, strict=True)
            ],
            "refusal": None,
        }

    def text_logprobs(self) -> dict[str, Any]:
        """As `logprobs`, in the older form of completions."""
        starts = [0]
        for text in self.token_texts[:-1]:
            starts.append(starts[-1] + len(text))
        return {
            "tokens": list(self.token_texts),
            "token_logprobs": list(self.completion.logprobs),
            "top_logprobs": None,
            "text_offset": starts[: len(self.token_texts)],
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """The response ``answer_id`` to one request; ``model`` is what the request called the policy."""

    answer_id: str
    model: str
    num_prompt_tokens: int
    choices: Sequence[Choice]
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def chat(self) -> dict[str, Any]:
        """The body of a chat completion."""
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": choice.logprobs() if self.with_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": self._usage()}

    def text(self) -> dict[str, Any]:
        """The body of a completion."""
        choices = [self._text_choice(index) for index in range(len(self.choices))]
        return self._head("text_completion") | {"choices": choices, "usage": self._usage()}

    def chat_stream(self, include_usage: bool) -> Iterator[bytes]:
        """The events of a chat completion: for each choice its role, what it says, why it ended."""
        head = self._head("chat.completion.chunk") | ({"usage": None} if include_usage else {})
        for index, choice in enumerate(self.choices):
            said = choice.message()
            calls = [call | {"index": number} for number, call in enumerate(said.pop("tool_calls", []))]
            deltas = [{"role": "assistant", "content": ""}, {"content": said["content"]}]
            deltas += [{"tool_calls": [call]} for call in calls]
            for number, delta in enumerate(deltas):
                logprobs = choice.logprobs() if self.with_logprobs and number == 1 else None
                yield _event(head | {"choices": [_chunk(index, delta, logprobs, None)]})
            yield _event(head | {"choices": [_chunk(index, {}, None, choice.finish_reason)]})
        yield from self._end_of_stream(head, include_usage)

    def text_stream(self, include_usage: bool) -> Iterator[bytes]:
        """The events of a completion: one for each choice."""
        head = self._head("text_completion") | ({"usage": None} if include_usage else {})
        for index in range(len(self.choices)):
            yield _event(head | {"choices": [self._text_choice(index)]})
        yield from self._end_of_stream(head, include_usage)

    def _end_of_stream(self, head: Mapping[str, Any], include_usage: bool) -> Iterator[bytes]:
        if include_usage:
            yield _event({**head, "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _text_choice(self, index: int) -> dict[str, Any]:
        choice = self.choices[index]
        return {
            "index": index,
            "text": choice.text,
            "logprobs": choice.text_logprobs() if self.with_logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        num_sampled = sum(len(choice.completion.token_ids) for choice in self.choices)
        cached = self.choices[0].completion.num_cached_tokens
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": num_sampled,
            "total_tokens": self.num_prompt_tokens + num_sampled,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _call(call: FoundCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _chunk(index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _event(body: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()

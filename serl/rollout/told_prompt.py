"""A prompt with a context in it: what a policy is told beside what its environment says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from serl.rollout.conversation import AnsweredPrompt, ChatMessage
from serl.rollout.prompt import PromptEncoder
from serl.types import Step


def with_context(messages: Sequence[ChatMessage], context: str) -> list[ChatMessage]:
    """``messages`` with ``context`` at the end of the last user message.

    Raises ValueError if there is no user message.
    """
    for index in reversed(range(len(messages))):
        message = messages[index]
        if message["role"] == "user":
            told = {**message, "content": f"{message['content']}\n\n{context}"}
            return [*messages[:index], told, *messages[index + 1 :]]
    raise ValueError("a context needs a user message to be put into")


def told_prompt_encoder(
    messages: Sequence[ChatMessage],
    tools: Sequence[dict[str, Any]],
    before: Step | None,
    encoder: PromptEncoder,
) -> Callable[[str], list[int]]:
    """From a context to the ids of the prompt of ``messages`` with that context in it.

    Where the prompt continues the step ``before``, they begin with the same ids as the prompt itself.
    """
    if before is None:
        return lambda context: encoder.encode(with_context(messages, context), tools)
    answered = AnsweredPrompt.of_step(before, encoder)
    num_known = len(answered.messages)

    def encode(context: str) -> list[int]:
        told = with_context(messages, context)
        is_new = told[:num_known] == list(messages[:num_known])
        continued = answered.continued(told[num_known:], tools, encoder) if is_new else None
        return encoder.encode(told, tools) if continued is None else continued.token_ids

    return encode

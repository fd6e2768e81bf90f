"""Messages as chat templates take them, and by what two conversations are told to be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from serl.gateway.protocol import Message
from serl.rollout.conversation import ChatMessage

_ROLES = {"developer": "system"}


def template_message(message: Message) -> ChatMessage:
    """``message`` with its content as one text, and arguments of calls as objects, if they are objects."""
    found: ChatMessage = {"role": _ROLES.get(message.role, message.role), "content": message.text}
    if message.name:
        found["name"] = message.name
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found


def _arguments(text: str) -> Any:
    try:
        values = json.loads(text)
    except ValueError:
        return text
    return values if isinstance(values, dict) else text


def plain_message(message: ChatMessage) -> dict[str, str]:
    """``message`` as a role and a text, calls of tools in JSON at its end."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return {"role": message["role"], "content": "\n".join([message["content"], *calls]).strip("\n")}


def last_words(messages: Sequence[ChatMessage]) -> str:
    """What came after the assistant's last message, system prompts aside: what the policy acts on."""
    texts: list[str] = []
    for message in reversed(messages):
        if message["role"] in ("assistant", "system"):
            break
        texts.insert(0, message["content"])
    return "\n".join(texts)


def conversation_keys(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """A digest for the first 0, 1, … messages under ``tools``: equal where the conversations are.

    White space around what the assistant says is no difference, nor are the ids of calls: agents trim the
    one and number the other anew.
    """
    keys = [hashlib.sha256(_json(list(tools))).digest()]
    for message in messages:
        keys.append(next_key(keys[-1], message))
    return keys


def next_key(key: bytes, message: ChatMessage) -> bytes:
    """The digest of the conversation ``key`` with ``message`` behind it."""
    return hashlib.sha256(key + _json(_compared(message))).digest()


def _compared(message: ChatMessage) -> list[Any]:
    content = message["content"]
    if message["role"] == "assistant":
        content = content.strip()
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [message["role"], content, message.get("name", ""), calls]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode()

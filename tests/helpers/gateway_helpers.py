"""A gateway in front of a scripted policy: in this process for a coroutine, or on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from byte_tokenizers import byte_level
from openai import AsyncOpenAI
from rollout_helpers import SAMPLING, ScriptedClient
from transformers import PreTrainedTokenizerFast

from serl.gateway.app import make_app
from serl.gateway.gateway import PolicyGateway
from serl.gateway.tool_calls import ToolCallParser
from serl.rollout.episode import Policy
from serl.rollout.gateway import EpisodeAccess, EpisodeRecord, EpisodeTerms
from serl.rollout.prompt import PromptEncoder

END = "<|end|>"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
Agent = Callable[[AsyncOpenAI], Awaitable[None]]
CHAT = (
    "{% if tools %}[{{ tools | map(attribute='function.name') | join(' ') }}]{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# What some models' templates do to what the assistant said before the last message of the user.
THINKING_LEFT_OUT = CHAT.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}",
)


def chat_tokenizer(template: str = CHAT) -> PreTrainedTokenizerFast:
    """One id per byte, and a token for each mark of the template."""
    marks = ["<|end|>", *(f"<|{role}|>" for role in ("system", "user", "assistant", "tool"))]
    return byte_level(marks, template, eos_token="<|end|>")


def terms(**changes: Any) -> EpisodeTerms:
    """Of an episode whose requests carry no seeds."""
    values: dict[str, Any] = {
        "session_id": "g000000-0",
        "sampling": SAMPLING,
        "seed": None,
        "max_prompt_length": 400,
        "max_answers": 5,
        "request_timeout_s": 60.0,
        "timeout_s": 60.0,
    }
    return EpisodeTerms(**values | changes)


def client_of(gateway: PolicyGateway, key: str) -> AsyncOpenAI:
    """OpenAI's own client, whose requests reach ``gateway`` without a network."""
    transport = httpx2.ASGITransport(make_app(gateway))
    return AsyncOpenAI(
        base_url="http://gateway/v1", api_key=key, http_client=httpx2.AsyncClient(transport=transport)
    )


class GatewayOnAPort:
    """`serl.rollout.gateway.Gateway` in this process; its HTTP comes through uvicorn."""

    def __init__(self, gateway: PolicyGateway, base_url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._gateway, self._base_url, self._loop = gateway, base_url, loop

    async def open_episode(self, terms: EpisodeTerms) -> EpisodeAccess:
        return await self._there(lambda: EpisodeAccess(self._base_url, self._gateway.open_episode(terms)))

    async def close_episode(self, api_key: str) -> EpisodeRecord:
        return await self._there(lambda: self._gateway.close_episode(api_key))

    async def _there(self, call: Any) -> Any:
        async def called() -> Any:
            return call()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(called(), self._loop))


@contextmanager
def gateway_on_a_port(
    policy: Policy, encoder: PromptEncoder, tool_parser: ToolCallParser | None = None
) -> Iterator[GatewayOnAPort]:
    """Served from a thread until the context is left."""
    gateway = PolicyGateway(policy, encoder, tool_parser)
    config = uvicorn.Config(make_app(gateway), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server, loop = uvicorn.Server(config), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60.0
    while not server.started:
        assert time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield GatewayOnAPort(gateway, f"http://127.0.0.1:{port}/v1", loop)
    server.should_exit = True
    thread.join(60.0)


@pytest.fixture(scope="module")
def chats() -> PromptEncoder:
    return PromptEncoder(chat_tokenizer())


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def saying(encoder: PromptEncoder, *texts: str) -> ScriptedClient:
    """A policy that says these one after the other."""
    return ScriptedClient(encoder, lambda session_id, index: texts[index % len(texts)])


def played(
    agent: Agent,
    policy: ScriptedClient,
    of_episode: EpisodeTerms | None = None,
    tool_parser: Any = None,
) -> EpisodeRecord:
    """What became of an episode of ``agent``."""

    async def play() -> EpisodeRecord:
        gateway = PolicyGateway(policy, policy.encoder, tool_parser)
        key = gateway.open_episode(of_episode or terms())
        await agent(client_of(gateway, key))
        return gateway.close_episode(key)

    return asyncio.run(play())


async def say(client: AsyncOpenAI, *messages: Any, **options: Any) -> Any:
    return await client.chat.completions.create(model="policy", messages=list(messages), **options)

"""What the gateway does not answer, and what becomes of an episode then."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from gateway_helpers import (
    CHAT,
    END,
    TOOL,
    chat_tokenizer,
    chats,
    client_of,
    played,
    say,
    saying,
    terms,
    user,
)
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, BadRequestError, RateLimitError
from rollout_helpers import ScriptedClient

from serl.gateway.app import make_app
from serl.gateway.gateway import PolicyGateway
from serl.rollout.gateway import EpisodeRecord
from serl.rollout.prompt import PromptEncoder
from serl.types import RequestRefused

__all__ = ["chats"]


def test_tools_need_a_parser(chats: PromptEncoder):
    async def agent(client: AsyncOpenAI) -> None:
        with pytest.raises(BadRequestError, match="serving.tool_parser"):
            await say(client, user("Go"), tools=[TOOL])

    assert played(agent, saying(chats, "")).counters == {"agent_requests_refused": 1}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": [{"role": "clown", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, "messages"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_field(
    chats: PromptEncoder, options: dict[str, Any], field: str
):
    async def agent(client: AsyncOpenAI) -> None:
        with pytest.raises(BadRequestError) as refused:
            await client.chat.completions.create(**{"model": "policy", "messages": [user("Go")]} | options)
        assert refused.value.param == field

    record = played(agent, saying(chats, ""))
    assert (record.answers, record.counters) == ([], {"agent_requests_refused": 1})


def test_what_is_no_json_is_refused(chats: PromptEncoder):
    async def ask() -> list[int]:
        gateway = PolicyGateway(saying(chats, ""), chats, None)
        header = {"authorization": f"Bearer {gateway.open_episode(terms())}"}
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(make_app(gateway))) as client:
            url = "http://gateway/v1/chat/completions"
            bodies = (b"{", b"[]", b"\xff", b'{"messages": "Hi"}')
            return [(await client.post(url, content=body, headers=header)).status_code for body in bodies]

    assert asyncio.run(ask()) == [400, 400, 400, 400]


def test_a_wrong_a_missing_and_an_ended_key_are_refused_and_late_calls_are_counted(chats: PromptEncoder):
    async def ask() -> EpisodeRecord:
        gateway = PolicyGateway(saying(chats, ""), chats, None)
        ended, open_key = gateway.open_episode(terms()), gateway.open_episode(terms())
        gateway.close_episode(ended)
        assert (await client_of(gateway, open_key).models.list()).data[0].id == "policy"
        for key, told in ((ended, "has ended"), ("serl-other", "no episode"), ("", "no key")):
            with pytest.raises(AuthenticationError, match=told):
                headers = {} if key else {"Authorization": "Basic"}
                await say(client_of(gateway, key or "none").with_options(default_headers=headers), user("Go"))
        return gateway.close_episode(open_key)

    assert asyncio.run(ask()).counters == {"agent_calls_after_end": 1}


def test_an_episode_that_nobody_closes_in_time_ends_when_another_begins(chats: PromptEncoder):
    async def ask() -> None:
        gateway = PolicyGateway(saying(chats, ""), chats, None)
        lost = gateway.open_episode(terms(timeout_s=-1000.0))
        other = gateway.open_episode(terms())
        gateway.open_episode(terms())
        with pytest.raises(AuthenticationError, match="has ended"):
            await client_of(gateway, lost).models.list()
        assert gateway.close_episode(other).answers == []

    asyncio.run(ask())


def test_an_episode_ends_at_its_limits_and_nobody_asks_again_in_vain(chats: PromptEncoder):
    policy = saying(chats, "x" + END)

    async def agent(client: AsyncOpenAI) -> None:
        await say(client, user("Go"))
        with pytest.raises(RateLimitError, match="at most 1 answers"):
            await say(client, user("Go"))

    record = played(agent, policy, terms(max_answers=1))
    assert (record.limit, len(record.answers)) == ("max_steps", 1)
    assert record.counters == {"agent_requests_refused": 1}

    async def talks_long(client: AsyncOpenAI) -> None:
        with pytest.raises(BadRequestError) as refused:
            await say(client, user("x" * 400))
        assert refused.value.code == "context_length_exceeded"

    assert played(talks_long, policy).limit == "prompt_too_long"


@pytest.mark.parametrize(
    ("raised", "reason", "status"),
    [
        (TimeoutError("no answer within 60 s"), "policy_unavailable", 503),
        (RequestRefused("too long"), "request_refused", 400),
    ],
)
def test_what_the_policy_could_not_answer_is_kept_as_the_reason(
    chats: PromptEncoder, raised: Exception, reason: str, status: int
):
    def respond(session_id: str, index: int) -> str:
        raise raised

    async def agent(client: AsyncOpenAI) -> None:
        with pytest.raises(APIStatusError) as refused:
            await say(client, user("Go"))
        assert refused.value.status_code == status

    record = played(agent, ScriptedClient(chats, respond))
    assert record.failure is not None
    assert record.failure[0] == reason
    assert (record.num_open, record.answers) == (0, [])


def test_what_a_template_raises_is_told(chats: PromptEncoder):
    grumpy = PromptEncoder(chat_tokenizer(CHAT.replace("{% if tools %}", "{{ 1 / 0 }}{% if tools %}")))

    async def agent(client: AsyncOpenAI) -> None:
        with pytest.raises(BadRequestError, match="ZeroDivisionError"):
            await say(client, user("Go"))

    played(agent, saying(grumpy, ""))


def test_requests_that_are_open_at_the_end_are_counted(chats: PromptEncoder):
    async def play() -> EpisodeRecord:
        policy = ScriptedClient(chats, delay=lambda session_id: 3600.0)
        gateway = PolicyGateway(policy, chats, None)
        key = gateway.open_episode(terms(request_timeout_s=7200.0))
        asking = asyncio.create_task(say(client_of(gateway, key), user("Go")))
        while not policy.requests:
            await asyncio.sleep(0)
        record = gateway.close_episode(key)
        asking.cancel()
        return record

    assert asyncio.run(play()).num_open == 1

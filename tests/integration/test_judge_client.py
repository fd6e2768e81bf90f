"""The judge's client against a real HTTP server that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from judge_helpers import (
    KEY,
    KEY_VARIABLE,
    Endpoint,
    Respond,
    completion,
    helpful,
    judge_settings,
    running,
)

from serl.config import JudgeSection
from serl.hindsight.judge.answers import Judgement
from serl.hindsight.judge.cache import AnswerCache
from serl.hindsight.judge.client import JudgeClient
from serl.hindsight.judge.endpoint import JudgeError, api_key, probe

ASKED = [{"role": "user", "content": "What went wrong?"}]


def ask(
    endpoint: Endpoint | str,
    *questions: str,
    key: str | None = None,
    retry_delay_s: float = 0.01,
    **changes: Any,
) -> list[Judgement]:
    """The judgements of ``questions`` (one by default), asked at the same time."""
    base_url = endpoint if isinstance(endpoint, str) else endpoint.base_url
    settings = JudgeSection.model_validate(judge_settings(base_url, **changes))

    async def ask_all(cache_file: Path) -> list[Judgement]:
        client = JudgeClient(settings, key, AnswerCache(cache_file), retry_delay_s)
        try:
            messages = [[{"role": "user", "content": question}] for question in questions] or [ASKED]
            return await asyncio.gather(*(client.ask(asked) for asked in messages))
        finally:
            await client.close()

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(ask_all(Path(folder) / "answers.jsonl"))


def in_turn(*answers: int | str) -> Respond:
    """Answers to the first requests, the last one to all that follow; an int is an HTTP error."""

    async def respond(body: dict[str, Any], number: int) -> web.Response:
        answer = answers[min(number, len(answers) - 1)]
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "overloaded"}}, status=answer)
        return completion(answer)

    return respond


def test_the_answer_is_the_judges_text_and_the_request_is_as_configured():
    with running(in_turn("  Look in the drawer first. \n")) as endpoint:
        (judgement,) = ask(endpoint, max_tokens=33, temperature=0.25)
    assert judgement.text == "Look in the drawer first."
    assert (judgement.retries, judgement.cached, judgement.by_fallback) == (0, False, False)
    assert judgement.seconds > 0
    (body,) = endpoint.bodies
    assert body == {"model": "judge", "messages": ASKED, "max_tokens": 33, "temperature": 0.25}


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_endpoint_is_asked_again(status: int):
    with running(in_turn(status, status, "Better.")) as endpoint:
        (judgement,) = ask(endpoint, max_retries=2)
    assert (judgement.text, judgement.retries) == ("Better.", 2)


def test_retries_end_and_wait_twice_as_long_each_time():
    with running(in_turn(500)) as endpoint:
        started = time.monotonic()
        (judgement,) = ask(endpoint, max_retries=3, retry_delay_s=0.1)
    assert (judgement.text, judgement.reason, judgement.retries) == (None, "server_error", 3)
    assert len(endpoint.bodies) == 4
    assert time.monotonic() - started >= 0.75 * (0.1 + 0.2 + 0.4)


@pytest.mark.parametrize(
    ("status", "reason", "num_requests"),
    [(429, "rate_limited", 2), (502, "server_error", 2), (400, "refused", 1), (401, "refused", 1)],
)
def test_what_the_endpoint_refuses_is_told_by_reason_and_not_asked_twice(
    status: int, reason: str, num_requests: int
):
    with running(in_turn(status)) as endpoint:
        (judgement,) = ask(endpoint, max_retries=1)
    assert (judgement.text, judgement.reason) == (None, reason)
    assert f"HTTP status {status}" in judgement.detail and "overloaded" in judgement.detail
    assert len(endpoint.bodies) == num_requests


def test_an_endpoint_that_hangs_is_given_up_after_the_timeout():
    async def hang(body: dict[str, Any], number: int) -> web.Response:
        await asyncio.sleep(3600)
        return completion("late")

    with running(hang) as endpoint:
        (judgement,) = ask(endpoint, timeout_s=0.3)
    assert (judgement.text, judgement.reason) == (None, "timeout")


@contextmanager
def trickling() -> Iterator[str]:
    """The address of an endpoint that begins an answer and sends a line of it every tenth of a second."""

    def trickle(server: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                for index in range(30):
                    time.sleep(0.1)
                    connection.sendall(f"X-{index}: 1\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        thread.join()


def test_an_endpoint_that_sends_a_little_at_a_time_is_given_up_too(tmp_path: Path):
    async def asked(base_url: str) -> Judgement:
        cache = AnswerCache(tmp_path / "answers.jsonl")
        settings = judge_settings(base_url, timeout_s=0.5)
        client = JudgeClient(JudgeSection.model_validate(settings), None, cache)
        judgement = await client.ask(ASKED)
        await client.close()
        return judgement

    with trickling() as base_url:
        judgement = asyncio.run(asked(base_url))
    assert (judgement.text, judgement.reason) == (None, "timeout")


def test_a_probe_waits_for_no_endpoint_that_sends_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serl.hindsight.judge.endpoint._PROBE_TIMEOUT_S", 0.5)
    with trickling() as base_url:
        started = time.monotonic()
        assert probe(JudgeSection.model_validate(judge_settings(base_url))) == "did not answer within 0.5 s"
        assert time.monotonic() - started < 2.0


def test_an_endpoint_that_is_down_is_unreachable():
    with running() as endpoint:
        pass
    (judgement,) = ask(endpoint, max_retries=1, fallback_model="second")
    assert (judgement.text, judgement.reason, judgement.retries) == (None, "unreachable", 1)
    assert endpoint.base_url in judgement.detail


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (completion(None), "empty"),
        (completion(None, "content_filter"), "empty"),
        ("None", "nonsense"),
        ("**N/A**", "nonsense"),
        ("null.", "nonsense"),
        ("...", "nonsense"),
        ("## The attempt to review", "nonsense"),
        ("A reviewer's assessment of this attempt:", "nonsense"),
        ("A reviewer's assessment of this attempt: None", "nonsense"),
        (web.Response(body=b"{not json", content_type="application/json"), "malformed"),
        (web.Response(body=b"<html>welcome</html>", content_type="text/html"), "malformed"),
        (web.Response(body=b"\xff\xfe", content_type="application/json"), "malformed"),
        (web.json_response({"choices": []}), "malformed"),
        (web.json_response({"choices": [{"message": None}]}), "malformed"),
        (web.json_response(["text"]), "malformed"),
        (completion(["a list"]), "malformed"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_unusable_answer_has_a_reason(answer: Any, reason: str):
    async def respond(body: dict[str, Any], number: int) -> web.Response:
        return completion(answer) if isinstance(answer, str) else answer

    with running(respond) as endpoint:
        (judgement,) = ask(endpoint)
    assert (judgement.text, judgement.reason) == (None, reason)
    assert judgement.detail


@pytest.mark.parametrize("answer", ["None of the drawers was opened.", "N/A would be wrong here", "好的"])
def test_an_answer_that_only_begins_like_nonsense_is_usable(answer: str):
    with running(in_turn(answer)) as endpoint:
        (judgement,) = ask(endpoint)
    assert judgement.text == answer


@pytest.mark.parametrize(
    "thought",
    [
        completion(None, "length", reasoning_content="Let me think"),
        completion("", "length", reasoning="Let me think"),
        completion("", "length"),
        completion("<think>Let me think", "length"),
        completion("<think>I have nothing</think>", "stop"),
    ],
)
def test_after_reasoning_alone_one_request_allows_more_tokens(thought: web.Response):
    async def respond(body: dict[str, Any], number: int) -> web.Response:
        return thought if body["max_tokens"] < 100 else completion("<think>hm</think>Open the drawer.")

    with running(respond) as endpoint:
        (judgement,) = ask(endpoint, max_tokens=16)
    assert judgement.text == "Open the drawer."
    assert [body["max_tokens"] for body in endpoint.bodies] == [16, 128]


def test_reasoning_is_not_given_more_than_one_request():
    async def think(body: dict[str, Any], number: int) -> web.Response:
        return completion(None, "length", reasoning_content="Hm")

    with running(think) as endpoint:
        (judgement,) = ask(endpoint, max_retries=5)
    assert (judgement.text, judgement.reason) == (None, "only_reasoning")
    assert [body["max_tokens"] for body in endpoint.bodies] == [512, 4096]


@pytest.mark.parametrize("failure", [500, 404, "None"])
def test_the_fallback_model_is_asked_where_the_first_gives_nothing(failure: int | str):
    async def respond(body: dict[str, Any], number: int) -> web.Response:
        answer = failure if body["model"] == "judge" else "Second opinion."
        return await in_turn(answer)(body, number)

    with running(respond) as endpoint:
        (judgement,) = ask(endpoint, fallback_model="second", max_retries=1)
    assert (judgement.text, judgement.by_fallback) == ("Second opinion.", True)
    assert endpoint.models == ["judge"] * (2 if failure == 500 else 1) + ["second"]


def test_no_more_requests_are_in_flight_than_allowed():
    async def slow(body: dict[str, Any], number: int) -> web.Response:
        await asyncio.sleep(0.05)
        return await helpful(body, number)

    with running(slow) as endpoint:
        judgements = ask(endpoint, *[f"question {index}" for index in range(10)], max_concurrent_requests=3)
    assert all(judgement.text for judgement in judgements)
    assert endpoint.max_in_flight == 3


def test_the_same_question_at_the_same_time_is_asked_once():
    with running() as endpoint:
        judgements = ask(endpoint, "same", "same", "other", "same")
    assert len(endpoint.bodies) == 2
    assert [judgement.cached for judgement in judgements] == [False, True, False, True]


def test_the_key_travels_as_bearer_and_is_never_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    async def quoting(body: dict[str, Any], number: int) -> web.Response:
        return web.json_response({"error": {"message": f"unknown key {KEY}"}}, status=401)

    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    settings = JudgeSection(api_key_env=KEY_VARIABLE)
    with caplog.at_level(logging.DEBUG), running(quoting) as endpoint:
        (judgement,) = ask(endpoint, key=api_key(settings))
    assert endpoint.authorizations == [f"Bearer {KEY}"]
    assert "unknown key ***" in judgement.detail and KEY not in repr(judgement)
    assert "HTTP" in caplog.text and KEY not in caplog.text
    assert KEY not in repr(settings)


def test_no_key_of_the_environment_is_sent_unless_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running() as endpoint:
        ask(endpoint, key=api_key(JudgeSection()))
    assert KEY not in endpoint.authorizations[0]


def test_a_key_that_is_not_there_is_told_by_the_variables_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    settings = JudgeSection(api_key_env=KEY_VARIABLE)
    with pytest.raises(JudgeError, match=f"{KEY_VARIABLE}: the environment variable is not set"):
        api_key(settings)
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\nX-Other: 1")
    with pytest.raises(JudgeError, match="is no key") as caught:
        api_key(settings)
    assert KEY not in str(caught.value)


def test_a_probe_tells_what_is_wrong_with_an_endpoint(monkeypatch: pytest.MonkeyPatch):
    with running() as endpoint:
        settings = JudgeSection.model_validate(judge_settings(endpoint.base_url))
        assert probe(settings) is None
        other = settings.model_copy(update={"model": "jugde"})
        assert probe(other) == "serves no jugde; it has judge"
        monkeypatch.setenv(KEY_VARIABLE, "wrong")
        assert probe(settings.model_copy(update={"api_key_env": KEY_VARIABLE})) == (
            "answers with HTTP status 401"
        )
    found = probe(settings)
    assert found is not None and found.startswith("cannot be reached")

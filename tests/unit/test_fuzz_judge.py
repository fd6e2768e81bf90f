"""Any answer of a judge's endpoint, and any file of answers: text that a teacher can read, or a reason."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import openai
import pytest
from fuzzing import any_text, damaged_bytes, damaged_json, fuzzed, json_values
from hypothesis import example, given
from hypothesis import strategies as st

from serl.config import JudgeSection
from serl.config.yaml_files import is_unicode
from serl.hindsight.judge.answers import UnusableAnswer, usable_text
from serl.hindsight.judge.cache import AnswerCache
from serl.hindsight.judge.client import JudgeClient
from serl.hindsight.judge.endpoint import probe

SETTINGS = JudgeSection(
    base_url="http://127.0.0.1:9/v1", model="judge", fallback_model="other", max_retries=1
)
MESSAGES = [{"role": "user", "content": "Well?"}]
ANSWER = {
    "id": "x",
    "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Open the drawer."}}],
}
contents = st.lists(
    st.sampled_from(["<think>", "</think>", "None", "N/A", "## ", " ", "\n", "look", "\0", "\u2028"])
    | any_text
).map("".join)
answers = st.one_of(
    contents.map(lambda text: {"choices": [{"message": {"content": text}}]}),
    damaged_json(ANSWER),
    json_values,
).map(lambda value: json.dumps(value).encode())
bodies = st.one_of(answers, damaged_bytes(json.dumps(ANSWER).encode()), st.binary(max_size=40))

lines = st.lists(damaged_json({"key": "k", "text": "t"}) | st.just({"key": "a", "text": "b"}), max_size=3)
whole_files = lines.map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode())
files = whole_files.flatmap(lambda content: st.just(content) | damaged_bytes(content))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@fuzzed(80)
@given(bodies)
@example(b"[" * 100_000)
@example(b'{"choices": [{"message": {"content": "\\ud800"}}]}')
def test_any_body_is_text_for_a_teacher_or_a_reason_without(body: bytes):
    try:
        text = usable_text(body)
    except UnusableAnswer as error:
        assert error.reason in ("malformed", "only_reasoning", "empty", "nonsense") and error.detail
    else:
        assert text == text.strip() != "" and "<think>" not in text and is_unicode(text)


@fuzzed(12)
@given(
    body=bodies,
    status=st.sampled_from([200, 200, 204, 206, 301, 304, 400, 401, 404, 408, 429, 500, 503, 599]),
    headers=st.sampled_from(
        [{}, {"content-encoding": "gzip"}, {"content-type": "text/html; charset=klingon"}]
    ),
)
def test_any_response_of_an_endpoint_becomes_a_judgement(
    folder: Path, body: bytes, status: int, headers: dict[str, str]
):
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=headers, stream=httpx2.ByteStream(body))

    async def judged() -> None:
        (folder / "answers.jsonl").unlink(missing_ok=True)
        cache = AnswerCache(folder / "answers.jsonl")
        client = JudgeClient(SETTINGS, None, cache, retry_delay_s=0.0)
        transport = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        client._client = openai.AsyncOpenAI(
            base_url=SETTINGS.base_url, api_key="none", http_client=transport, max_retries=0
        )
        judgement = await client.ask(MESSAGES)
        cache.close()
        assert (judgement.text is None) == bool(judgement.reason)
        # What was answered is found again in the file.
        again = AnswerCache(folder / "answers.jsonl")
        assert set(again._texts.values()) == ({judgement.text} if judgement.text else set())
        again.close()

    asyncio.run(judged())


@fuzzed(12)
@given(bodies)
@example(b'{"data": [{"id": 5}]}')
@example(b"[" * 100_000)
def test_any_list_of_models_is_told_in_words(body: bytes):
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=body))
    with pytest.MonkeyPatch.context() as patch:
        http_client = httpx2.AsyncClient(transport=transport)
        patch.setattr(openai, "AsyncOpenAI", partial(openai.AsyncOpenAI, http_client=http_client))
        found = probe(SETTINGS)
    assert found is None or is_unicode(found)


@fuzzed(50)
@given(files)
@example(b'{"key": "k", "text": "\\ud800"}\n')
@example(b'{"key": "k", "text": 5}\n' + b"[" * 100_000)
def test_any_file_of_answers_gives_texts_and_counts_what_is_none(folder: Path, content: bytes):
    file = folder / "answers.jsonl"
    file.write_bytes(content)
    cache = AnswerCache(file)
    assert all(isinstance(text, str) and is_unicode(text) for text in cache._texts.values())
    cache.add("new", "text")
    cache.close()
    again = AnswerCache(file)
    assert again.get("new") == "text"
    again.close()

"""Asking the judge: retries, the fallback model, one request more for what reasoning used up, the cache."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import openai

from serl.config import JudgeSection
from serl.hindsight.judge.answers import Judgement, UnusableAnswer, usable_text
from serl.hindsight.judge.cache import AnswerCache, answer_key
from serl.hindsight.judge.endpoint import make_client, without_key

Messages = Sequence[dict[str, str]]

_BUSY_STATUSES = (408, 409, 429)
_WORTH_A_RETRY = ("timeout", "unreachable", "rate_limited", "server_error", "malformed")
_RETRY_DELAY_S = 1.0
_MAX_RETRY_DELAY_S = 60.0


@dataclass(slots=True)
class _Requests:
    """Those about one trajectory. ``started`` None: nothing has been sent yet."""

    num_sent: int = 0
    started: float | None = None

    def begin(self) -> None:
        self.num_sent += 1
        if self.started is None:
            self.started = time.monotonic()

    def judgement(self, text: str | None, by_fallback: bool, reason: str = "", detail: str = "") -> Judgement:
        seconds = time.monotonic() - self.started if self.started is not None else 0.0
        retries = max(self.num_sent - 1, 0)
        return Judgement(text, reason, detail, False, by_fallback, seconds, retries)


class JudgeClient:
    """Lives on one event loop. At most ``max_concurrent_requests`` requests are under way at any time.

    A failed request is sent again after ``retry_delay_s`` seconds, then twice that, and so on. Why stands in
    ``sent_again``, of which another thread may take.
    """

    def __init__(
        self,
        settings: JudgeSection,
        key: str | None,
        cache: AnswerCache,
        retry_delay_s: float = _RETRY_DELAY_S,
    ) -> None:
        self._settings = settings
        self._retry_delay_s = retry_delay_s
        self._key = key
        self._cache = cache
        self._client = make_client(settings, key)
        self.sent_again: deque[UnusableAnswer] = deque()
        self._slots = asyncio.Semaphore(settings.max_concurrent_requests)
        self._same_request: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(self, messages: Messages) -> Judgement:
        """The judge's answer to ``messages``, from the cache if the same was answered before.

        Whatever the endpoint does, nothing is raised: where no usable answer came the text is None.
        """
        key = answer_key(messages, self._settings)
        lock = self._same_request.setdefault(key, asyncio.Lock())
        async with lock:
            known = self._cache.get(key)
            if known is not None:
                return Judgement(known, cached=True)
            async with self._slots:
                judgement = await self._ask_models(messages)
            if judgement.text is not None:
                self._cache.add(key, judgement.text)
            return judgement

    async def close(self) -> None:
        await self._client.close()
        self._cache.close()

    async def _ask_models(self, messages: Messages) -> Judgement:
        settings = self._settings
        requests = _Requests()
        assert settings.model is not None
        try:
            return requests.judgement(await self._answer(settings.model, messages, requests), False)
        except UnusableAnswer as error:
            failure, by_fallback = error, False
        # The fallback is behind the same address.
        if settings.fallback_model is not None and failure.reason != "unreachable":
            try:
                return requests.judgement(
                    await self._answer(settings.fallback_model, messages, requests), True
                )
            except UnusableAnswer as error:
                failure, by_fallback = error, True
        return requests.judgement(None, by_fallback, failure.reason, failure.detail)

    async def _answer(self, model: str, messages: Messages, requests: _Requests) -> str:
        settings = self._settings
        try:
            return await self._complete(model, messages, settings.max_tokens, requests)
        except UnusableAnswer as error:
            if error.reason != "only_reasoning":
                raise
        return await self._complete(model, messages, settings.max_tokens_with_reasoning, requests)

    async def _complete(self, model: str, messages: Messages, max_tokens: int, requests: _Requests) -> str:
        """Sends one request, again while that may help."""
        for retry in range(self._settings.max_retries):
            try:
                return await self._send(model, messages, max_tokens, requests)
            except UnusableAnswer as error:
                if error.reason not in _WORTH_A_RETRY:
                    raise
                self.sent_again.append(error)
                delay_s = self._retry_delay_s * 2**retry
            # Not all at the same moment, when an endpoint comes back.
            await asyncio.sleep(min(delay_s, _MAX_RETRY_DELAY_S) * random.uniform(0.75, 1.25))
        return await self._send(model, messages, max_tokens, requests)

    async def _send(self, model: str, messages: Messages, max_tokens: int, requests: _Requests) -> str:
        requests.begin()
        timeout_s = self._settings.timeout_s
        try:
            # The client's own timeout begins anew with every piece that arrives.
            async with asyncio.timeout(timeout_s):
                answer = await self._client.chat.completions.with_raw_response.create(
                    model=model,
                    messages=messages,  # type: ignore[arg-type]
                    max_tokens=max_tokens,
                    temperature=self._settings.temperature,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise UnusableAnswer("timeout", f"{model} took longer than {timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise UnusableAnswer("unreachable", f"{self._settings.base_url}: {cause}") from None
        except openai.APIStatusError as error:
            raise UnusableAnswer(_reason(error.status_code), self._status_text(model, error)) from None
        return usable_text(answer.http_response.content)

    def _status_text(self, model: str, error: openai.APIStatusError) -> str:
        said = without_key(error.message, self._key)
        return f"{model}: HTTP status {error.status_code}: {said[:200]}"


def _reason(status_code: int) -> str:
    if status_code == 429:
        return "rate_limited"
    return "server_error" if status_code >= 500 or status_code in _BUSY_STATUSES else "refused"

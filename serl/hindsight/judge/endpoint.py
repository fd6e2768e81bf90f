"""The judge's endpoint: its key, its client, and whether it is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from serl.config import JudgeSection

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_PROBE_TIMEOUT_S = 5.0
# The client refuses to be made without a key and would take OPENAI_API_KEY, whatever the address.
_NO_KEY = "none"


class JudgeError(RuntimeError):
    """The judge cannot be asked, or ``hindsight.judge.strict`` and it gave no usable answer."""


def api_key(settings: JudgeSection) -> str | None:
    """The key from the environment, None if none is wanted.

    Raises JudgeError, which names the variable and never the value, if it is not set or no key can be that.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    where = f"hindsight.judge.api_key_env = {settings.api_key_env}"
    if not key:
        raise JudgeError(f"{where}: the environment variable is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise JudgeError(f"{where}: the variable's value is no key; it has blanks or unprintable characters")
    return key


def without_key(text: str, key: str | None) -> str:
    """``text`` as it may be shown: servers like to quote what they refuse."""
    return text.replace(key, "***") if key else text


def make_client(settings: JudgeSection, key: str | None) -> AsyncOpenAI:
    """A client that sends each request once; retries are the caller's.

    Raises JudgeError if none can be made, as with a proxy of a kind that it cannot use.
    """
    from openai import AsyncOpenAI

    with _no_client_as_judge_error(settings):
        return AsyncOpenAI(
            base_url=settings.base_url, api_key=key or _NO_KEY, timeout=settings.timeout_s, max_retries=0
        )


@contextmanager
def _no_client_as_judge_error(settings: JudgeSection) -> Generator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        proxies = [
            name for name in ("all_proxy", "http_proxy", "https_proxy") if name in map(str.lower, os.environ)
        ]
        advice = (
            f" ({', '.join(proxies)} is set: unset it, or for a SOCKS proxy pip install 'httpx[socks]')"
            if proxies
            else ""
        )
        raise JudgeError(f"hindsight.judge.base_url = {settings.base_url!r}: {error}{advice}") from error


def probe(settings: JudgeSection) -> str | None:
    """What is wrong with the endpoint, None if nothing is; asks it for its models, for a few seconds at most.

    Raises JudgeError if the key is not there or no client can be made.
    """
    from openai import APIConnectionError, APIError, APIStatusError

    try:
        models = asyncio.run(_models(make_client(settings, api_key(settings))))
    except APIStatusError as error:
        # Not every server lists its models.
        if error.status_code in (404, 405, 501):
            return None
        return f"answers with HTTP status {error.status_code}"
    except TimeoutError:
        return f"did not answer within {_PROBE_TIMEOUT_S:g} s"
    except APIConnectionError as error:
        return f"cannot be reached: {type(error.__cause__ or error).__name__}"
    except (APIError, AttributeError, TypeError, ValueError, RecursionError):
        return "does not answer like an OpenAI-compatible endpoint"
    absent = [name for name in (settings.model, settings.fallback_model) if name and name not in models]
    if absent:
        return f"serves no {' and no '.join(absent)}; it has {', '.join(models[:5]) or 'no model'}"
    return None


async def _models(client: AsyncOpenAI) -> list[str]:
    async with client, asyncio.timeout(_PROBE_TIMEOUT_S):
        return [str(model.id) for model in (await client.models.list()).data]

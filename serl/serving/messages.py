"""What travels between a policy client and a replica: plain tuples, cheap to pickle."""

from __future__ import annotations

from typing import NamedTuple

from serl.types import Completion, Sampling, VersionSpan


class Request(NamedTuple):
    """One prompt and how to continue it; ``key`` is the asker's own number for it."""

    key: int
    prompt_ids: list[int]
    temperature: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None


class Answer(NamedTuple):
    """How the request ``key`` ended; ``spans`` are ``(start, end, weights_seq_no)``.

    A refused request has a ``refusal``, which says why, and nothing else.
    """

    key: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    spans: list[tuple[int, int, int]]
    num_cached_tokens: int
    refusal: str | None = None


class Answers(NamedTuple):
    """One message of a stream: what finished since the last one, and where; the first lists nothing."""

    replica: str
    answers: list[Answer]


def make_request(key: int, prompt_ids: list[int], sampling: Sampling) -> Request:
    """The request ``key`` for one response to ``prompt_ids``."""
    return Request(
        key,
        prompt_ids,
        sampling.temperature,
        sampling.max_tokens,
        sampling.stop,
        sampling.seed,
    )


def refused(request: Request, reason: str) -> Answer:
    """The answer to a request that the engine does not accept."""
    return Answer(request.key, [], [], "refused", [], 0, reason)


def completion(answer: Answer) -> Completion:
    """The `Completion` of an accepted request."""
    return Completion(
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        finish_reason=answer.finish_reason,
        version_spans=tuple(VersionSpan(*span) for span in answer.spans),
        num_cached_tokens=answer.num_cached_tokens,
    )

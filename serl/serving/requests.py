"""What travels between a policy client and a replica: plain tuples, cheap to pickle.

One Serve call carries the requests that a client collected, and its answer is a stream: each message
lists the requests that finished since the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from serl.types import Completion, VersionSpan


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample a response.

    ``temperature`` 0 takes the likeliest token. ``stop`` ends a response once its text contains one of
    the strings; the tokens of the string belong to the response. ``seed`` makes the request repeatable
    under the same weights (None: the engine's own stream of random numbers).
    """

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None


class Request(NamedTuple):
    """One prompt and how to continue it."""

    prompt_ids: list[int]
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None


class Answer(NamedTuple):
    """How the request ``index`` of a call ended; ``spans`` are ``(start, end, weights_seq_no)``.

    A refused request has a ``refusal``, which says why, and nothing else.
    """

    index: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    spans: list[tuple[int, int, int]]
    num_cached_tokens: int
    refusal: str | None = None


def refused(index: int, reason: str) -> Answer:
    """The answer to a request that the engine does not accept."""
    return Answer(index, [], [], "refused", [], 0, reason)


def completion(answer: Answer) -> Completion:
    """The `Completion` of an accepted request."""
    return Completion(
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        finish_reason=answer.finish_reason,
        version_spans=tuple(VersionSpan(*span) for span in answer.spans),
        num_cached_tokens=answer.num_cached_tokens,
    )

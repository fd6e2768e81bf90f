"""The episodes that may ask, each under a key of its own."""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from serl.gateway.conversation import Conversations
from serl.gateway.protocol import ApiError
from serl.rollout.gateway import EpisodeRecord, EpisodeTerms
from serl.rollout.prompt import PromptEncoder

_KEY_PREFIX = "serl-"
# Of so many ended keys a call is told from one with a wrong key.
_NUM_REMEMBERED = 10_000
# An env runner that lives has closed an episode this long after its agent's deadline.
_CLOSING_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Episode:
    """One episode under way. ``num_asked`` answers were asked for, and will be given or not.

    ``expires``: the time on the monotonic clock at which nobody is left who would close it.
    """

    terms: EpisodeTerms
    conversations: Conversations
    expires: float
    record: EpisodeRecord = field(default_factory=EpisodeRecord)
    num_asked: int = 0


class Episodes:
    """Opened, found by their keys, and closed."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._open: dict[str, Episode] = {}
        self._ended: deque[str] = deque(maxlen=_NUM_REMEMBERED)
        self._num_late_calls = 0

    def open(self, terms: EpisodeTerms) -> str:
        """The key of a new episode; those that nobody has closed in time end."""
        self._end_lost()
        key = f"{_KEY_PREFIX}{secrets.token_urlsafe(32)}"
        expires = time.monotonic() + terms.timeout_s + _CLOSING_TIMEOUT_S
        self._open[key] = Episode(terms, Conversations(self._encoder), expires)
        return key

    def close(self, key: str) -> EpisodeRecord:
        """What the episode became; later calls with its key are refused, and counted in the next record.

        Raises KeyError.
        """
        record = self._open.pop(key).record
        self._ended.append(key)
        counters = record.counters + Counter(agent_calls_after_end=self._num_late_calls)
        self._num_late_calls = 0
        # A copy: what is still answered belongs to nobody.
        return replace(record, answers=list(record.answers), counters=counters)

    def of(self, authorization: str | None) -> Episode:
        """The episode of a request with this header. Raises ApiError (401)."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "no key was sent: set OPENAI_API_KEY to the episode's", "invalid_api_key")
        episode = self._open.get(key)
        if episode is not None:
            return episode
        if key in self._ended:
            self._num_late_calls += 1
            raise ApiError(401, "the episode of this key has ended", "invalid_api_key")
        raise ApiError(401, "no episode has this key", "invalid_api_key")

    def _end_lost(self) -> None:
        """Episodes of one run have one timeout: the oldest expire first."""
        now = time.monotonic()
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if now < oldest.expires:
                return
            del self._open[key]
            self._ended.append(key)

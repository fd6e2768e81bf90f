"""What an env runner asks of a gateway: a key for an episode, and what the policy answered under it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from serl.types import Completion, Sampling


class GatewayUnavailable(RuntimeError):
    """The gateway does not answer, or has ended since and knows its keys no longer."""


@dataclass(frozen=True, slots=True)
class EpisodeTerms:
    """How the requests of one episode are answered; lengths in tokens.

    ``session_id`` names it to the policy. ``seed``: requests carry seeds derived from it (None: they carry
    none). ``max_answers``: what is asked beyond them is refused. ``timeout_s`` is the agent's; an episode
    that is not closed well after it has lost its env runner, and ends by itself.
    """

    session_id: str
    sampling: Sampling
    seed: int | None
    max_prompt_length: int
    max_answers: int
    request_timeout_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class EpisodeAccess:
    """What an agent needs: the root of the API, as clients of OpenAI take it, and the key of its episode."""

    base_url: str
    api_key: str


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """One answer of the policy to a request of an agent.

    ``answer_id`` is the ``id`` of the response, with ``/1``, ``/2`` … behind it for its further choices.
    ``observation`` is what the request's last messages said, ``continues`` the index of the answer whose
    tokens the prompt begins with (None: of none). ``messages`` are ``{"role", "content"}`` each; ``tools``
    were offered with them.
    """

    answer_id: str
    prompt_ids: list[int]
    completion: Completion
    messages: tuple[dict[str, str], ...]
    tools: tuple[dict[str, Any], ...]
    observation: str
    continues: int | None


@dataclass(slots=True)
class EpisodeRecord:
    """What happened under a key until it was closed; ``answers`` in the order in which they were given.

    ``limit``: the limit that refused a request, as `Trajectory.end_reason` names it ("": none did).
    ``failure``: why the policy could not answer, as a reason and a message (None: it did). ``num_open``
    requests were not answered yet. ``generation_seconds``: of all answers together. ``counters``: see
    `RolloutReport`.
    """

    answers: list[GatewayAnswer] = field(default_factory=list)
    limit: str = ""
    failure: tuple[str, str] | None = None
    num_open: int = 0
    generation_seconds: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)


class Gateway(Protocol):
    """The gateway as an env runner sees it. Both methods raise GatewayUnavailable."""

    async def open_episode(self, terms: EpisodeTerms) -> EpisodeAccess:
        """Access for one episode, until it is closed."""
        ...

    async def close_episode(self, api_key: str) -> EpisodeRecord:
        """Ends the access, and says what the policy answered under it."""
        ...

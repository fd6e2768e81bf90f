"""How one episode of an agent ends, by what its processes and the gateway say."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import pytest
from gateway_helpers import chat_tokenizer
from rollout_helpers import SETTINGS

from envs.agent.provider import make_provider
from envs.base import Task
from serl.rollout.agent_episode import AgentEpisodes
from serl.rollout.agent_processes import AgentOutcome, AgentProcesses
from serl.rollout.env_calls import EpisodeFailure
from serl.rollout.gateway import EpisodeAccess, EpisodeRecord, EpisodeTerms, GatewayAnswer
from serl.rollout.prompt import PromptEncoder
from serl.types import Completion, RolloutRequest, Trajectory, VersionSpan

HI = Completion([7, 8], [-0.5, -0.5], "stop", (VersionSpan(0, 2, 0),), 0)
ANSWER = GatewayAnswer("chatcmpl-1", [5, 6], HI, ({"role": "user", "content": "Go"},), (), "Go", None)


class Said:
    """An agent's run, its processes and its gateway, which say what they are told to say."""

    def __init__(self, outcome: AgentOutcome, record: EpisodeRecord) -> None:
        self._outcome, self._record = outcome, record

    async def start_run(self, call: Any) -> Said:
        return self

    async def __aenter__(self) -> Said:
        return self

    async def __aexit__(self, *raised: object) -> None:
        pass

    async def outcome(self) -> AgentOutcome:
        return self._outcome

    async def finish(self) -> int:
        return 0

    async def open_episode(self, terms: EpisodeTerms) -> EpisodeAccess:
        return EpisodeAccess("http://gateway/v1", "serl-key")

    async def close_episode(self, api_key: str) -> EpisodeRecord:
        return self._record


def played(outcome: AgentOutcome, record: EpisodeRecord, **agent: Any) -> Trajectory:
    agent = agent or {"run": "toy_agents:play"}
    provider = make_provider({**agent, "tasks": "toy_agents:tasks", "timeout_s": 5.0})
    said = Said(outcome, record)
    encoder = PromptEncoder(chat_tokenizer())
    episodes = AgentEpisodes(provider, cast(AgentProcesses, said), said, encoder)
    request = RolloutRequest(Task("train hanging"), "g0", 0, seed=0)
    return asyncio.run(episodes.play(request, "train", SETTINGS, Counter()))


def test_an_agent_that_waits_past_its_deadline_failed_unless_it_had_met_a_limit():
    # Some frameworks wait for minutes, and ask again, where a request is one too many.
    waiting = AgentOutcome("", "", timed_out=True)
    trajectory = played(waiting, EpisodeRecord(answers=[ANSWER], limit="max_steps"))
    assert (trajectory.end_reason, trajectory.reward, len(trajectory.steps)) == ("max_steps", 0.0, 1)
    with pytest.raises(EpisodeFailure, match="within env.args.timeout_s = 5"):
        played(waiting, EpisodeRecord(answers=[ANSWER]))


def test_an_agent_whose_last_line_is_no_json_returned_nothing():
    for line in ("done", "[" * 100_000):
        printed = AgentOutcome(f'{{"reward": 1}}\n{line}', "", exit_code=0)
        with pytest.raises(EpisodeFailure, match="the agent returned no reward") as failure:
            played(printed, EpisodeRecord(answers=[ANSWER]), command=["agent"])
        assert failure.value.reason == "agent_error"

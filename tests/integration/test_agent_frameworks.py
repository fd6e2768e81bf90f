"""Agents of frameworks, unchanged from PyPI, behind the gateway; skipped where these are not installed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_runner import ENCODER, play, running
from rollout_helpers import ScriptedClient

from envs.base import Task
from serl.config import EnvSection
from serl.gateway.tool_calls import FoundCall, ToolCallParser
from serl.types import RolloutRequest, Trajectory


class JsonCall(ToolCallParser):
    """Finds one call, in tags; vLLM's own parsers are tried with a real engine."""

    def __init__(self) -> None:
        pass

    def parse(self, said: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[FoundCall]]:
        text, opened, rest = said.partition("<call>")
        if not opened:
            return said, []
        call = json.loads(rest.partition("</call>")[0])
        return text, [FoundCall("call_0", call["name"], json.dumps(call["arguments"]))]


def played(folder: Path, agent: str, *said: str) -> Trajectory:
    """One episode of ``agent``, to which the policy says these one after the other."""
    args = {"run": f"framework_agents:{agent}", "tasks": "framework_agents:tasks", "timeout_s": 300.0}
    return played_in(folder, "agent", args, "train sum", *said)


def played_in(folder: Path, name: str, args: dict[str, Any], task_id: str, *said: str) -> Trajectory:
    """One episode of the environment ``name``, which plays by itself."""
    policy = ScriptedClient(ENCODER, lambda session_id, index: said[index] + "<|end|>")
    env = EnvSection(name=name, args=args, max_steps=4, call_timeout_s=300.0)
    with running(folder, policy, env, JsonCall()) as runner:
        report = play(runner, [RolloutRequest(Task(task_id), "g0", 0, seed=0)])
    assert not report.failures, report.failures[0].message
    return report.trajectories[0]


def test_an_agent_of_openai_agents_calls_a_tool_and_goes_on_from_the_sampled_ids(tmp_path: Path):
    pytest.importorskip("agents", reason="needs the extra openai-agents")
    call = '<call>{"name": "add", "arguments": {"a": 2, "b": 3}}</call>'
    trajectory = played(tmp_path, "of_openai_agents", call, "5")
    first, second = trajectory.steps
    assert trajectory.reward == 1.0
    assert first.tools[0]["function"]["name"] == "add"
    sampled = first.prompt_ids + first.response_ids
    assert second.prompt_ids[: len(sampled)] == sampled
    assert first.next_observation == second.anchor == "5"


def test_an_agent_of_smolagents_writes_code_and_goes_on_from_the_sampled_ids(tmp_path: Path):
    pytest.importorskip("smolagents", reason="needs the extra smolagents")
    code = "Thought: add\n<code>\nprint(2 + 3)\n</code>"
    trajectory = played(tmp_path, "of_smolagents", code, "<code>\nfinal_answer(5)\n</code>")
    first, second = trajectory.steps
    assert trajectory.reward == 1.0
    assert "How much is 2 + 3?" in first.anchor
    assert "5" in second.anchor


def test_an_environment_of_verifiers_plays_by_itself_and_its_answers_go_on_from_the_sampled_ids(
    tmp_path: Path,
):
    pytest.importorskip("verifiers", reason="needs the extra verifiers")
    name = "verifiers:verifiers_environments"
    trajectory = played_in(tmp_path, name, {"num_valid": 2}, "train:3", "1", "3")
    first, second = trajectory.steps
    assert (trajectory.reward, trajectory.success, trajectory.metrics["num_turns"]) == (1.0, True, 2.0)
    assert (first.anchor, first.action, first.feedback) == ("Guess 3.", "1", "higher")
    assert (second.anchor, second.action, second.feedback, second.reward) == ("higher", "3", "right", 1.0)
    sampled = first.prompt_ids + first.response_ids
    assert second.prompt_ids[: len(sampled)] == sampled

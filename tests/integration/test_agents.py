"""Agents in processes of their own, behind a gateway over HTTP, played by an env runner."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_runner import ENCODER, play, running
from rollout_helpers import ScriptedClient

from envs.alfworld.provider import make_provider
from envs.base import Task
from serl.batch.group import scaled_advantages
from serl.config import EnvSection, ExperimentConfig, ModelSection
from serl.rollout.env_runner import SERLEnvRunner
from serl.types import Completion, RolloutRequest, Sampling, Trajectory, TrajectoryGroup, VersionSpan


def requests_of(*kinds: str) -> list[RolloutRequest]:
    tasks = [Task(f"train {kind}") for kind in kinds]
    return [RolloutRequest(task, "g0", index, seed=index) for index, task in enumerate(tasks)]


def agents(**args: Any) -> EnvSection:
    known = {"run": "toy_agents:play", "tasks": "toy_agents:tasks", "timeout_s": 60.0}
    return EnvSection(name="agent", args=known | args, max_steps=3)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SERLEnvRunner]:
    policy = ScriptedClient(ENCODER, lambda session_id, index: "Well<|end|>")
    with running(tmp_path_factory.mktemp("model"), policy, agents()) as runner:
        yield runner


def test_what_an_agent_reports_of_its_turns_is_in_its_steps(runner: SERLEnvRunner):
    report = play(runner, requests_of("rewarded", "rewarded"))
    for trajectory in report.trajectories:
        first, second = trajectory.steps
        assert (trajectory.reward, trajectory.success, trajectory.end_reason) == (2.0, True, "success")
        assert (first.reward, second.reward) == (0.0, 2.0)
        assert (first.anchor, first.next_observation, second.next_observation) == ("Go", "On", None)
        assert (first.action, second.action, second.feedback) == ("Well", "wave", "good")
        assert second.prompt_ids[: len(first.prompt_ids + first.response_ids)] == (
            first.prompt_ids + first.response_ids
        )
        assert first.action_mask == [True] * 5
        assert trajectory.metrics["luck"] == random.Random(trajectory.rollout_index).random()
    assert report.counters["env_steps"] == 4
    assert report.counters["episodes_finished"] == 2


def test_an_agent_may_meet_a_limit_return_a_bool_be_a_coroutine_and_leave_a_zombie(runner: SERLEnvRunner):
    report = play(runner, requests_of("until the limit", "coroutine", "with zombie"))
    assert [(t.end_reason, t.reward, len(t.steps)) for t in report.trajectories] == [
        ("max_steps", 0.0, 3),
        ("success", 1.0, 1),
        ("success", 1.0, 1),
    ]


@pytest.mark.parametrize(
    ("kind", "reason", "told"),
    [
        ("raising", "agent_error", "it raised ValueError: no idea"),
        ("exiting", "agent_error", "it ended with 3"),
        ("silent", "agent_error", "asked the policy nothing"),
        ("of few words", "agent_error", "returned no reward"),
        ("of strange words", "agent_error", "'fine' is neither a reward nor a mapping"),
        ("of another turn", "agent_error", "a turn 'other' that is no answer to it"),
        ("leaky", "agent_leak", "left 1 processes behind"),
    ],
)
def test_an_agent_that_fails_fails_its_rollout_alone(
    runner: SERLEnvRunner, kind: str, reason: str, told: str, capfd: pytest.CaptureFixture[str]
):
    report = play(runner, requests_of(kind, "coroutine"))
    (failure,) = report.failures
    assert (failure.reason, failure.request.rollout_index) == (reason, 0)
    assert told in failure.message.splitlines()[0]
    assert len(report.trajectories) == 1
    assert capfd.readouterr().out == ""
    if kind == "raising":
        assert "its last words" in failure.message


def test_an_agent_that_hangs_is_ended_at_its_deadline_and_with_its_runner(tmp_path: Path):
    policy = ScriptedClient(ENCODER)
    with running(tmp_path, policy, agents(timeout_s=0.5)) as runner:
        (failure,) = play(runner, requests_of("hanging")).failures
        assert failure.reason == "agent_timeout"
        assert "within env.args.timeout_s = 0.5" in failure.message
    others = set(psutil.Process().children(recursive=True))
    with running(tmp_path, policy, agents()) as runner:
        runner.exchange(requests_of("hanging"), wait_s=0.0)
        own: set[psutil.Process] = set()
        deadline = time.monotonic() + 60.0
        while len(own) < 3:  # the server that forks, a supervisor, the agent
            assert time.monotonic() < deadline
            own = set(psutil.Process().children(recursive=True)) - others
        assert [failure.reason for failure in runner.abort().failures] == ["aborted"]
    assert psutil.wait_procs(own, timeout=60.0)[1] == []


def test_a_grader_decides_and_what_it_raises_fails_the_rollout(tmp_path: Path):
    policy = ScriptedClient(ENCODER, lambda session_id, index: "Well<|end|>")
    with running(tmp_path, policy, agents(grader="toy_agents:grade")) as runner:
        report = play(runner, requests_of("rewarded", "of few words", "until the limit", "of strange words"))
    assert [(t.reward, t.success, t.end_reason) for t in report.trajectories] == [
        (2.0, False, "failure"),
        (1.0, False, "failure"),
        (3.0, False, "max_steps"),
    ]
    assert [step.reward for step in report.trajectories[0].steps] == [0.0, 2.0]
    assert report.trajectories[0].metrics["graded"] == 1.0
    (failure,) = report.failures
    assert (failure.reason, "LookupError: words" in failure.message) == ("grader_error", True)


COMMAND = """
import json, sys
from openai import OpenAI
task = json.load(sys.stdin)
print("thinking")
said = OpenAI().chat.completions.create(model="m", messages=[{"role": "user", "content": task["question"]}])
print(json.dumps({"reward": float(said.choices[0].message.content == task["answer"])}))
"""


def test_a_command_gets_its_task_as_input_and_its_last_line_is_its_report(tmp_path: Path):
    lines = [
        {"id": "a", "split": "train", "question": "2 + 2", "answer": "4"},
        {"id": "b", "split": "train", "question": "2 + 3", "answer": "5"},
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    env = EnvSection(name="agent", args={"command": [sys.executable, "-c", COMMAND], "tasks": str(file)})
    policy = ScriptedClient(ENCODER, lambda session_id, index: "4<|end|>")
    with running(tmp_path, policy, env) as runner:
        requests = [RolloutRequest(Task(line["id"]), "g0", i, seed=0) for i, line in enumerate(lines)]
        report = play(runner, requests)
    assert not report.failures
    assert [(t.reward, t.success, t.steps[0].anchor) for t in report.trajectories] == [
        (1.0, True, "2 + 2"),
        (0.0, False, "2 + 3"),
    ]


class PromptReader:
    """Takes one of the actions that a prompt names, or nonsense, and which one is drawn from the seed."""

    retries = 0

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, session_id: str, deadline_s: float
    ) -> Completion:
        prompt = ENCODER.tokenizer.decode(prompt_ids)
        assert sampling.seed is not None
        rng = random.Random(f"{sampling.seed} {hashlib.sha256(prompt.encode()).hexdigest()}")
        actions = re.findall(r"'([a-z]+ [^']+)'", prompt) or ["look"]
        said = rng.choice(
            [f"<action>{rng.choice(actions)}</action>"] * 5 + ["<action>fly</action>", "Hm?<|end|>"]
        )
        token_ids = ENCODER.ids(said)
        logprobs = [rng.uniform(-3.0, 0.0) for _ in token_ids]
        return Completion(token_ids, logprobs, "stop", (VersionSpan(0, len(token_ids), 0),), 5)


def test_the_example_plays_as_the_built_in_episodes_do_token_for_token(tmp_path: Path):
    """Under the same seeds: prompts, ids, log-probs, what the environment said, and advantages."""
    task = make_provider({"data": "embedded", "max_receptacles": 6}).task_set("train").tasks[0]
    requests = [RolloutRequest(task, "g0", index, seed=100 + index) for index in range(4)]
    built_in = EnvSection(name="alfworld", args={"data": "embedded", "max_receptacles": 6}, max_steps=8)
    args = {"run": "envs.agent.example:play", "tasks": "envs.agent.example:tasks"}
    agent = EnvSection(name="agent", args=args, max_steps=8)
    played: list[list[Trajectory]] = []
    for env in (built_in, agent):
        with running(tmp_path, PromptReader(), env, seeded_requests=True) as runner:
            report = play(runner, requests)
        assert not report.failures
        played.append(report.trajectories)
    for own, of_agent in zip(*played, strict=True):
        assert len(own.steps) == len(of_agent.steps) > 1
        for step, other in zip(own.steps, of_agent.steps, strict=True):
            last = step is own.steps[-1]
            expected = replace(step, next_observation=None) if last else step
            assert asdict(other) == asdict(expected)
        assert (own.reward, own.success, own.end_reason) == (
            of_agent.reward,
            of_agent.success,
            of_agent.end_reason,
        )
    experiment = ExperimentConfig(name="e", model=ModelSection(path="p"), env=built_in)
    advantages = [
        scaled_advantages([TrajectoryGroup("g0", task, trajectories)], experiment)[0].tolist()
        for trajectories in played
    ]
    assert advantages[0] == advantages[1]
    assert len(set(advantages[0])) > 1

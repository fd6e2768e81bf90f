"""Tasks of agents, what agents return, and what is said of wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_helpers import MINIMAL, problem_of

from envs.agent.provider import PlaysByItself, make_provider
from envs.agent.report import read_report
from envs.base import assert_disjoint

LINES: list[dict[str, Any]] = [
    {"id": "a", "split": "train", "type": "sum", "question": "1 + 1"},
    {"id": "b", "split": "valid", "question": "1 + 2"},
    {"id": "c", "split": "train", "question": "1 + 3"},
]


def write(folder: Path, *lines: Any) -> str:
    file = folder / "tasks.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(file)


def test_lines_of_a_split_are_its_tasks_and_the_agent_gets_the_whole_line(tmp_path: Path):
    provider = make_provider({"run": "os:getcwd", "tasks": write(tmp_path, *LINES, "")})
    train, valid = provider.task_set("train"), provider.task_set("valid")
    assert [(task.task_id, task.task_type) for task in train.tasks] == [("a", "sum"), ("c", "")]
    assert [task.task_id for task in valid.tasks] == ["b"]
    assert provider.task("train", "c") == LINES[2]
    assert_disjoint(train, valid)


def test_a_task_that_changes_changes_the_hash_and_one_that_is_held_out_too_is_found(tmp_path: Path):
    def provider(*lines: dict[str, Any]) -> Any:
        return make_provider({"run": "os:getcwd", "tasks": write(tmp_path, *lines)})

    before = provider(*LINES).task_set("train")
    assert before.content_hash == provider(*LINES).task_set("train").content_hash
    changed = provider(LINES[0], LINES[2] | {"question": "2 + 2"}).task_set("train")
    assert changed.content_hash != before.content_hash
    leaking = provider(*LINES, {"id": "d", "split": "valid", "question": "1 + 3"})
    with pytest.raises(ValueError, match="'d' of 'agent/valid' is also in 'agent/train' as 'c'"):
        assert_disjoint(leaking.task_set("train"), leaking.task_set("valid"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (LINES, "unknown split 'trial'; did you mean 'train'\\?; it has: train, valid"),
        ([*LINES, {"id": "d", "split": 5}], "unknown split 'trial'.*; it has: 5, train, valid"),
        (["[" * 100_000], "line 1: no JSON object with a split"),
        (["{"], "line 1: no JSON object with a split"),
        ([{"id": "a"}], "line 1: no JSON object with a split"),
        ([{"split": "trial"}], "task 0 is no mapping with an id"),
        ([{"id": "a", "split": "trial", "type": "\ud800"}], r"task 'a' of type '\\ud800': half of a"),
        ([{"id": "\ud800", "split": "trial"}], r"task '\\ud800' of type '': half of a"),
        ([{"id": "a", "split": "trial"}] * 2, "the id 'a' is there twice"),
    ],
)
def test_what_is_wrong_with_tasks_is_told(tmp_path: Path, lines: list[Any], told: str):
    provider = make_provider({"run": "os:getcwd", "tasks": write(tmp_path, *lines)})
    with pytest.raises(ValueError, match=told):
        provider.task_set("trial")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"tasks": "t"}, "give the agent as run: module:function or as command"),
        ({"tasks": "t", "run": "a:b", "command": ["c"]}, "give the agent as run"),
        ({"tasks": "t", "rum": "a:b"}, "env.args.rum: unknown key; did you mean 'run'"),
        ({"tasks": "t", "run": "a:b", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_wrong_arguments_are_told(args: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        make_provider(args)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"run": "os:nothing"}, "env.args.run: 'os:nothing' cannot be loaded"),
        ({"run": "os:sep"}, "is no function"),
        ({"run": "os"}, "'os' is no module:function"),
        ({"run": "os:getcwd", "grader": "nowhere:grade"}, "env.args.grader: 'nowhere:grade' cannot be"),
        ({"command": ["no-such-program"]}, "there is no program 'no-such-program'"),
    ],
)
def test_code_that_is_not_there_is_told(args: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        make_provider({"tasks": "t"} | args).load()


def test_an_agent_has_no_steps_for_others():
    with pytest.raises(PlaysByItself, match="plays by itself"):
        make_provider({"tasks": "t", "run": "os:getcwd"}).make_env()


def test_a_reward_alone_is_a_report():
    assert (read_report(2).episode_reward, read_report(2).solved) == (2.0, True)
    assert (read_report(False).episode_reward, read_report(False).solved) == (0.0, False)
    assert read_report({"reward": -1.0, "success": True}).solved


def test_rewards_of_turns_add_up():
    turns = [{"id": "a", "reward": 0.5}, {"id": "b", "reward": 1.0}]
    assert read_report({"turns": turns}).episode_reward == 1.5
    assert read_report({"turns": turns, "reward": 1.5}).episode_reward == 1.5
    with pytest.raises(ValueError, match="reward = 1, but its turns' rewards add up to 1.5"):
        read_report({"turns": turns, "reward": 1.0})


@pytest.mark.parametrize(
    "value",
    [
        "fine",
        [1.0],
        float("nan"),
        pytest.param(10**400, id="too large"),
        {"rewards": 1.0},
        {"turns": [{"reward": 1.0}]},
        {"turns": [{"id": "a", "reward": 1e308}, {"id": "b", "reward": 1e308}]},
    ],
)
def test_what_is_no_report_is_refused(value: Any):
    with pytest.raises(ValueError):
        read_report(value)


def test_half_a_surrogate_pair_from_an_agent_reaches_no_file():
    turn = {"id": "a", "feedback": "\ud800", "action": "a\udc00", "observation": "\ud83d"}
    report = read_report({"turns": [turn], "metrics": {"own\ud800": 1.0}})
    (said,) = report.turns
    assert (said.feedback, said.action, said.observation) == ("\ufffd", "a\ufffd", "\ufffd")
    assert report.metrics == {"own\ufffd": 1.0}


def test_a_grade_takes_the_place_of_what_the_agent_says_of_its_reward():
    own = read_report({"turns": [{"id": "a", "reward": 5.0, "feedback": "hm"}], "metrics": {"own": 1.0}})
    graded = own.graded(read_report({"reward": 0.25, "success": False, "metrics": {"score": 0.25}}))
    assert (graded.episode_reward, graded.solved) == (0.25, False)
    assert (graded.turns[0].feedback, graded.turns[0].reward) == ("hm", 0.0)
    assert graded.metrics == {"own": 1.0, "score": 0.25}


def test_an_agent_needs_the_gateway_and_a_parser_of_calls_too(tmp_path: Path):
    for name in ("agent", "verifiers:ReasoningGymEnv"):
        text = problem_of(tmp_path, MINIMAL, f"env.name={name}")
        assert f"env.name = {name} contradicts serving.gateway = false" in text
    text = problem_of(tmp_path, MINIMAL, "serving.tool_parser=hermes")
    assert "serving.tool_parser = hermes contradicts serving.gateway = false" in text

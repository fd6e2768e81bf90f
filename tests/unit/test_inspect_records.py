"""Records to look at: what a line holds, which trajectories are chosen, and where the file ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from envs.base import Task
from serl.rollout.prompt import PromptEncoder
from serl.run.metrics_writer import drop_lines_after
from serl.run.records import (
    TRAJECTORIES,
    TrajectoryRecord,
    TrajectoryWriter,
    trajectories_to_record,
    trajectory_record,
)
from serl.types import Step, TeacherRecord, Trajectory, TrajectoryGroup, VersionSpan

_POLICY = Path(__file__).resolve().parents[2] / "serl" / "policies" / "tiny_alfworld"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return PromptEncoder.load(str(_POLICY)).tokenizer


def trajectory(tokenizer: Any, response: str, group: str = "g", rollout_index: int = 0, reward: float = 10.0):
    ids = tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id]
    step = Step(
        prompt_ids=[1, 2, 3],
        response_ids=ids,
        old_logprobs=[-0.12345678] * (len(ids) - 1) + [-math.inf],
        action_mask=[False, True] + [False] * (len(ids) - 2),
        version_spans=(VersionSpan(0, 1, 6), VersionSpan(1, len(ids), 7)),
        finish_reason="stop",
        messages=({"role": "system", "content": "Play."}, {"role": "user", "content": "Where is the mug?"}),
        response_text=response,
        anchor="a room",
        action="look",
        action_valid=True,
        feedback=None,
        next_observation="a shelf",
    )
    task = Task("t/1", "look_at_obj")
    name = f"{group}-{rollout_index}"
    return Trajectory(
        name, group, rollout_index, task, [step], reward, reward > 0, "success", seconds=1.23456
    )


def teacher_record(of: Trajectory, context: str | None = "The mug is on shelf 1.") -> TeacherRecord:
    num_tokens = len(of.steps[0].response_ids)
    none: list[float | None] = [None] * num_tokens
    return TeacherRecord(
        trajectory_id=of.trajectory_id,
        step_index=0,
        advantage=0.87654321,
        token_advantages=[0.8] * num_tokens,
        context=context,
        weights=[None, 1.2, *none[2:]],
        log_ratios=[None, 0.5, *none[2:]],
        context_effects=[None, 0.7, *none[2:]],
        log_ratios_without_context=[None, -0.2, *none[2:]],
    )


def test_a_line_holds_every_token_with_what_the_teacher_made_of_it(tokenizer: Any):
    played = trajectory(tokenizer, "<think>find mug</think><action>go to shelf 1</action>")
    other = replace(played, trajectory_id="another")
    records = [teacher_record(other, context="not this one"), teacher_record(played)]
    line = json.loads(trajectory_record(3, played, records, tokenizer).model_dump_json())
    assert (line["iteration"], line["group_id"], line["rollout_index"], line["weights_seq_no"]) == (
        3,
        "g",
        0,
        6,
    )
    assert (line["task_type"], line["reward"], line["success"], line["seconds"]) == (
        "look_at_obj",
        10.0,
        True,
        1.235,
    )
    (step,) = line["steps"]
    assert "".join(step["tokens"]) == step["response"] == played.steps[0].response_text
    assert len(step["tokens"]) == len(step["token_ids"]) == len(step["old_logprobs"]) > 5
    assert step["tokens"][-1] == "" and step["special_tokens"] == {
        str(len(step["tokens"]) - 1): tokenizer.eos_token
    }
    assert step["old_logprobs"][0] == -0.1235 and step["old_logprobs"][-1] is None
    assert step["action_mask"][:3] == [0, 1, 0]
    assert step["version_spans"] == [[0, 1, 6], [1, len(step["tokens"]), 7]]
    assert [message["role"] for message in step["messages"]] == ["system", "user"]
    teacher = step["teacher"]
    assert teacher["context"] == "The mug is on shelf 1." and teacher["advantage"] == 0.8765
    assert [
        teacher[name][1]
        for name in ("weights", "log_ratios", "context_effects", "log_ratios_without_context")
    ] == [
        1.2,
        0.5,
        0.7,
        -0.2,
    ]


def test_a_character_spread_over_tokens_is_written_once(tokenizer: Any):
    played = trajectory(tokenizer, "é☕ mug")
    (step,) = trajectory_record(1, played, [], tokenizer).steps
    assert "".join(step.tokens) == "é☕ mug"
    assert "" in step.tokens[:-1], "this tokenizer should need several tokens for one of these characters"
    assert step.teacher is None


def test_a_line_whose_lists_do_not_match_its_tokens_is_refused(tokenizer: Any):
    record = trajectory_record(1, played := trajectory(tokenizer, "go"), [teacher_record(played)], tokenizer)
    line = json.loads(record.model_dump_json())
    line["steps"][0]["teacher"]["log_ratios"].pop()
    with pytest.raises(ValidationError, match=r"teacher.log_ratios has \d entries for \d tokens"):
        TrajectoryRecord.model_validate(line)


def groups_of(tokenizer: Any, rewards: dict[str, tuple[float, float]]) -> list[TrajectoryGroup]:
    return [
        TrajectoryGroup(
            name,
            Task("t/1"),
            [
                trajectory(tokenizer, "go", name, rollout_index, reward)
                for rollout_index, reward in enumerate(both)
            ],
        )
        for name, both in rewards.items()
    ]


def test_whole_groups_are_chosen_and_those_with_a_spread_of_rewards_first(tokenizer: Any):
    groups = groups_of(tokenizer, {"a": (0.0, 0.0), "b": (0.0, 10.0), "c": (10.0, 0.0)})

    def chosen(number: int) -> list[str]:
        return [t.trajectory_id for t in trajectories_to_record(groups, 1, number, 1)]

    assert chosen(4) == ["b-0", "b-1", "c-0", "c-1"]
    assert chosen(5) == ["b-0", "b-1", "c-0", "c-1", "a-0"]
    assert chosen(0) == []


def test_only_every_nth_iteration_is_recorded(tokenizer: Any):
    groups = groups_of(tokenizer, {"a": (0.0, 10.0)})
    recorded = {n: len(trajectories_to_record(groups, n, 8, interval=3)) for n in range(1, 7)}
    assert recorded == {1: 0, 2: 0, 3: 2, 4: 0, 5: 0, 6: 2}


def test_the_file_stops_at_its_limit_and_what_is_left_out_is_counted(tokenizer: Any, tmp_path: Path):
    played = trajectory(tokenizer, "go to shelf 1")
    size = len(trajectory_record(1, played, [], tokenizer).model_dump_json()) + 1
    writer = TrajectoryWriter(tmp_path, tokenizer, max_bytes=2 * size + size // 2)
    assert writer.write(1, [played], [])["records/trajectories_left_out"] == 0.0
    assert not writer.full
    metrics = writer.write(2, [played, played, played], [])
    assert (metrics["records/trajectories_written"], metrics["records/trajectories_left_out"]) == (1.0, 2.0)
    assert metrics["records/trajectories_mib"] == pytest.approx(2 * size / 2**20)
    assert writer.full
    short = replace(played, steps=[])
    assert writer.write(3, [short], [])["records/trajectories_left_out"] == 1.0
    file = tmp_path / TRAJECTORIES
    assert file.stat().st_size == 2 * size and file.read_bytes().count(b"\n") == 2


def test_line_separators_in_model_text_survive_a_resume(tokenizer: Any, tmp_path: Path):
    played = trajectory(tokenizer, "go")
    played.steps[0].next_observation = "one\u2028two\x85three\nfour"
    writer = TrajectoryWriter(tmp_path, tokenizer, max_bytes=10**6)
    for iteration in (1, 2, 3):
        writer.write(iteration, [played], [])
    file = tmp_path / TRAJECTORIES
    file.write_bytes(file.read_bytes() + '{"iteration": 3, "text": "é'.encode()[:-1])
    drop_lines_after(file, 2)
    records = [TrajectoryRecord.model_validate_json(line) for line in file.read_bytes().splitlines()]
    assert [record.iteration for record in records] == [1, 2]
    assert records[0].steps[0].next_observation == "one\u2028two\x85three\nfour"

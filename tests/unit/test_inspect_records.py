"""Records to look at: what a line holds, and where the file ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from trajectories import make_step, make_trajectory

from envs.base import Task
from serl.rollout.prompt import PromptEncoder
from serl.run.metrics_writer import drop_lines_after
from serl.run.records import (
    TRAJECTORIES,
    TrajectoryRecord,
    TrajectoryWriter,
    trajectory_record,
)
from serl.types import TeacherRecord, Trajectory, VersionSpan

_POLICY = Path(__file__).resolve().parents[2] / "serl" / "policies" / "tiny_alfworld"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return PromptEncoder.load(str(_POLICY)).tokenizer


def trajectory(tokenizer: Any, response: str, group: str = "g", rollout_index: int = 0, reward: float = 10.0):
    ids = tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id]
    step = make_step(
        ids,
        prompt_ids=[1, 2, 3],
        old_logprobs=[-0.12345678] * (len(ids) - 1) + [-math.inf],
        action_mask=[False, True] + [False] * (len(ids) - 2),
        version_spans=(VersionSpan(0, 1, 6), VersionSpan(1, len(ids), 7)),
        messages=({"role": "system", "content": "Play."}, {"role": "user", "content": "Where is the mug?"}),
        response_text=response,
        next_observation="a shelf",
    )
    task = Task("t/1", "look_at_obj")
    return make_trajectory(
        [step], reward, group, rollout_index, task=task, end_reason="success", seconds=1.23456
    )


def teacher_record(of: Trajectory, context: str | None = "The mug is on shelf 1.") -> TeacherRecord:
    num_tokens = len(of.steps[0].response_ids)
    none: list[float | None] = [None] * num_tokens
    return TeacherRecord(
        advantage=0.87654321,
        token_advantages=[0.8] * num_tokens,
        context=context,
        weights=[None, 1.2, *none[2:]],
        log_ratios=[None, 0.512345, *none[2:]],
        context_effects=[None, 0.7, math.inf, *none[3:]],
        log_ratios_without_context=[None, -0.2, *none[2:]],
    )


def line_of(played: Trajectory, tokenizer: Any, **changes: object) -> dict[str, Any]:
    """The line of ``played``, of whose only step the learner reported a record with ``changes``."""
    records = {
        (played.trajectory_id, 0): replace(teacher_record(played), **changes),
        ("another", 0): teacher_record(played, context="not this one"),
        (played.trajectory_id, 1): teacher_record(played, context="nor this one"),
    }
    return json.loads(trajectory_record(3, played, records, tokenizer).model_dump_json())


def test_a_line_tells_of_which_episode_it_is(tokenizer: Any):
    line = line_of(trajectory(tokenizer, "go"), tokenizer)
    assert (line["iteration"], line["group_id"], line["rollout_index"]) == (3, "g", 0)
    assert (line["weights_seq_no"], line["task_type"], line["seconds"]) == (6, "look_at_obj", 1.235)
    assert (line["reward"], line["success"]) == (10.0, True)


def test_a_line_holds_every_token_of_a_step(tokenizer: Any):
    played = trajectory(tokenizer, "<think>find mug</think><action>go to shelf 1</action>")
    (step,) = line_of(played, tokenizer)["steps"]
    last = len(step["tokens"]) - 1
    assert "".join(step["tokens"]) == step["response"] == played.steps[0].response_text
    assert last > 4 and len(step["token_ids"]) == len(step["old_logprobs"]) == last + 1
    assert step["tokens"][-1] == "" and step["special_tokens"] == {str(last): tokenizer.eos_token}
    assert step["old_logprobs"][0] == -0.1235 and step["old_logprobs"][-1] is None
    assert step["action_mask"][:3] == [0, 1, 0]
    assert step["version_spans"] == [[0, 1, 6], [1, last + 1, 7]]
    assert [message["role"] for message in step["messages"]] == ["system", "user"]


def test_a_line_holds_what_the_learner_reported_rounded_and_null_where_it_is_not_finite(tokenizer: Any):
    (step,) = line_of(trajectory(tokenizer, "go to shelf 1"), tokenizer)["steps"]
    teacher = step["teacher"]
    assert teacher["context"] == "The mug is on shelf 1." and teacher["advantage"] == 0.8765
    assert teacher["token_advantages"] == [0.8] * len(step["tokens"])
    assert teacher["weights"][:3] == [None, 1.2, None]
    assert teacher["log_ratios"][:3] == [None, 0.5123, None]
    assert teacher["context_effects"][:3] == [None, 0.7, None]
    assert teacher["log_ratios_without_context"][:3] == [None, -0.2, None]


def test_what_was_not_scored_stays_null_and_a_line_reads_back_as_it_was_written(tokenizer: Any):
    line = line_of(trajectory(tokenizer, "go to"), tokenizer, context_effects=None, context=None)
    record = TrajectoryRecord.model_validate_json(json.dumps(line))
    assert record.steps[0].teacher is not None
    assert record.steps[0].teacher.context_effects is None and record.steps[0].teacher.context is None
    assert json.loads(record.model_dump_json()) == line


def test_lines_of_serl_0_1_are_read_under_the_present_names(tokenizer: Any):
    line = line_of(trajectory(tokenizer, "go to shelf 1"), tokenizer)
    former = dict(line)
    former["member"] = former.pop("rollout_index")
    (step,) = former["steps"]
    teacher = dict(step["teacher"])
    teacher["deltas"] = teacher.pop("log_ratios")
    teacher["feedback_effects"] = teacher.pop("context_effects")
    teacher["drifts"] = teacher.pop("log_ratios_without_context")
    former["steps"] = [step | {"teacher": teacher}]
    assert "rollout_index" not in former and set(teacher) != set(step["teacher"])
    assert json.loads(TrajectoryRecord.model_validate_json(json.dumps(former)).model_dump_json()) == line


def test_keys_that_a_reader_does_not_know_are_passed_over(tokenizer: Any):
    line = line_of(trajectory(tokenizer, "go"), tokenizer)
    (step,) = line["steps"]
    later = line | {"new": 1, "steps": [step | {"new": 1, "teacher": step["teacher"] | {"new": 1}}]}
    assert json.loads(TrajectoryRecord.model_validate_json(json.dumps(later)).model_dump_json()) == line


def test_a_character_spread_over_tokens_is_written_once(tokenizer: Any):
    played = trajectory(tokenizer, "é☕ mug")
    (step,) = trajectory_record(1, played, {}, tokenizer).steps
    assert "".join(step.tokens) == "é☕ mug"
    assert "" in step.tokens[:-1], "this tokenizer should need several tokens for one of these characters"
    assert step.teacher is None


def test_a_line_whose_lists_do_not_match_its_tokens_is_refused(tokenizer: Any):
    line = line_of(trajectory(tokenizer, "go"), tokenizer)
    line["steps"][0]["teacher"]["log_ratios"].pop()
    with pytest.raises(ValidationError, match=r"teacher.log_ratios has \d entries for \d tokens"):
        TrajectoryRecord.model_validate(line)


def test_the_file_stops_at_its_limit_and_what_is_left_out_is_counted(tokenizer: Any, tmp_path: Path):
    played = trajectory(tokenizer, "go to shelf 1")
    size = len(trajectory_record(1, played, {}, tokenizer).model_dump_json()) + 1
    writer = TrajectoryWriter(tmp_path, tokenizer, max_bytes=2 * size + size // 2)
    assert writer.write(1, [played], {})["records/trajectories_left_out"] == 0.0
    assert not writer.full
    metrics = writer.write(2, [played, played, played], {})
    assert (metrics["records/trajectories_written"], metrics["records/trajectories_left_out"]) == (1.0, 2.0)
    assert metrics["records/trajectories_mib"] == pytest.approx(2 * size / 2**20)
    assert writer.full
    short = replace(played, steps=[])
    assert writer.write(3, [short], {})["records/trajectories_left_out"] == 1.0
    file = tmp_path / TRAJECTORIES
    assert file.stat().st_size == 2 * size and file.read_bytes().count(b"\n") == 2


def test_line_separators_in_model_text_survive_a_resume(tokenizer: Any, tmp_path: Path):
    played = trajectory(tokenizer, "go")
    played.steps[0].next_observation = "one\u2028two\x85three\nfour"
    writer = TrajectoryWriter(tmp_path, tokenizer, max_bytes=10**6)
    for iteration in (1, 2, 3):
        writer.write(iteration, [played], {})
    file = tmp_path / TRAJECTORIES
    file.write_bytes(file.read_bytes() + '{"iteration": 3, "text": "é'.encode()[:-1])
    drop_lines_after(file, 2)
    records = [TrajectoryRecord.model_validate_json(line) for line in file.read_bytes().splitlines()]
    assert [record.iteration for record in records] == [1, 2]
    assert records[0].steps[0].next_observation == "one\u2028two\x85three\nfour"

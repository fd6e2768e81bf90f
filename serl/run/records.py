"""``trajectories.jsonl``: episodes that were trained on and what the teacher made of them, to be looked at.

Every line is one `TrajectoryRecord`, written after the update that trained on the trajectory;
`serl.batch.assemble` chooses which. The file never grows past ``logging.max_trajectories_mib``; what is left
out from then on is counted.

Numbers are rounded to 4 decimals and null where they are not finite. Nothing is computed from these records:
training has the tokens themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from serl.rollout.token_offsets import token_offsets
from serl.types import Step, TeacherRecord, TeacherRecords, Trajectory

TRAJECTORIES = "trajectories.jsonl"

# SERL 0.1 wrote the same lines with these names in the place of the present ones.
_FORMER_NAMES = {
    "member": "rollout_index",
    "deltas": "log_ratios",
    "feedback_effects": "context_effects",
    "drifts": "log_ratios_without_context",
}


def _under_present_names(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {_FORMER_NAMES.get(name, name): value for name, value in values.items()}


class Record(BaseModel):
    """A part of a line. Keys that a reader does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StepRecord(Record):
    """One turn. ``messages`` are the prompt as ``{"role", "content"}``; the response follows token by token.

    ``continues``: the step whose messages, and the response to them, come before ``messages`` (null: nothing
    does); `TrajectoryRecord.messages_of` has all of them.

    ``tokens`` has the text that each sampled id adds to the response: together they are ``response``. It is
    "" for the later tokens of a character spread over several, and for tokens without any text, such as the
    end of a turn, which ``special_tokens`` names by their position.
    ``old_logprobs`` (natural, at the sampling temperature), ``action_mask`` (1: part of the action) and the
    lists of ``teacher`` have one entry per token too. ``version_spans`` has ``[start, end, weights_seq_no]``
    for the tokens [start, end) sampled under those weights. ``teacher`` is null if the learner reported
    nothing of the step; its ``weights`` are the clipped ones, before λ mixes them into ``token_advantages``.
    """

    messages: list[dict[str, str]]
    continues: int | None = None
    response: str
    tokens: list[str]
    token_ids: list[int]
    special_tokens: dict[int, str]
    old_logprobs: list[float | None]
    action_mask: list[Literal[0, 1]]
    version_spans: list[tuple[int, int, int]]
    action: str | None
    action_valid: bool
    feedback: str | None
    next_observation: str | None
    reward: float | None
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    teacher: Annotated[TeacherRecord | None, BeforeValidator(_under_present_names)]

    @model_validator(mode="after")
    def _one_entry_per_token(self) -> StepRecord:
        found = {name: getattr(self, name) for name in ("tokens", "old_logprobs", "action_mask")}
        if self.teacher is not None:
            found |= {
                f"teacher.{field.name}": getattr(self.teacher, field.name) for field in fields(self.teacher)
            }
        for name, values in found.items():
            if isinstance(values, list) and len(values) != len(self.token_ids):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.token_ids)} tokens")
        return self


class TrajectoryRecord(Record):
    """One line: an episode, the iteration that trained on it, and its steps.

    ``hint``: what every prompt held beside its messages (null: nothing); the log-probs are those with it.
    ``reward`` is the return, ``weights_seq_no`` the oldest weights that sampled a token of it (null: it has
    no step), ``seconds`` the time from its start to its end.
    """

    iteration: int
    trajectory_id: str
    group_id: str
    rollout_index: int
    task_id: str
    task_type: str
    reward: float | None
    success: bool
    end_reason: str
    weights_seq_no: int | None
    seconds: float
    hint: str | None = None
    steps: list[StepRecord]

    @model_validator(mode="before")
    @classmethod
    def _of_former_versions(cls, values: Any) -> Any:
        return _under_present_names(values)

    @model_validator(mode="after")
    def _continues_earlier_steps(self) -> TrajectoryRecord:
        for index, step in enumerate(self.steps):
            if step.continues is not None and not 0 <= step.continues < index:
                raise ValueError(f"step {index} continues {step.continues}, which is no earlier step")
        return self

    def messages_of(self, index: int) -> list[dict[str, str]]:
        """The whole prompt of a step."""
        step = self.steps[index]
        messages = step.messages
        while step.continues is not None:
            step = self.steps[step.continues]
            messages = [*step.messages, {"role": "assistant", "content": step.response}, *messages]
        return messages


def trajectory_record(
    iteration: int, trajectory: Trajectory, teacher_records: TeacherRecords, tokenizer: Any
) -> TrajectoryRecord:
    """The line of ``trajectory``; ``teacher_records`` may hold other trajectories' too."""
    return TrajectoryRecord(
        iteration=iteration,
        trajectory_id=trajectory.trajectory_id,
        group_id=trajectory.group_id,
        rollout_index=trajectory.rollout_index,
        task_id=trajectory.task.task_id,
        task_type=trajectory.task.task_type,
        reward=_rounded(trajectory.reward),
        success=trajectory.success,
        end_reason=trajectory.end_reason,
        weights_seq_no=trajectory.weights_seq_no,
        seconds=round(trajectory.seconds, 3),
        hint=trajectory.hint,
        steps=[
            _step_record(
                step,
                trajectory.continued_step(step),
                teacher_records.get((trajectory.trajectory_id, index)),
                tokenizer,
            )
            for index, step in enumerate(trajectory.steps)
        ],
    )


def _step_record(
    step: Step, before: Step | None, teacher: TeacherRecord | None, tokenizer: Any
) -> StepRecord:
    tokens, special_tokens = _token_texts(step.response_ids, tokenizer)
    num_before = 0 if before is None else len(before.messages) + 1
    return StepRecord(
        messages=list(step.messages[num_before:]),
        continues=None if before is None else step.continues,
        response=step.response_text,
        tokens=tokens,
        token_ids=step.response_ids,
        special_tokens=special_tokens,
        old_logprobs=_all_rounded(step.old_logprobs),
        action_mask=[1 if in_action else 0 for in_action in step.action_mask],
        version_spans=[(span.start, span.end, span.weights_seq_no) for span in step.version_spans],
        action=step.action,
        action_valid=step.action_valid,
        feedback=step.feedback,
        next_observation=step.next_observation,
        reward=_rounded(step.reward),
        finish_reason=step.finish_reason,
        num_prompt_tokens=len(step.prompt_ids),
        num_cached_tokens=step.num_cached_tokens,
        teacher=None if teacher is None else _rounded_teacher(teacher),
    )


def _token_texts(token_ids: Sequence[int], tokenizer: Any) -> tuple[list[str], dict[int, str]]:
    """What each id adds to the text, a character spread over tokens with the first; and special tokens."""
    text, offsets = token_offsets(token_ids, tokenizer)
    pieces: list[str] = []
    reached = 0
    for start, end in offsets:
        pieces.append(text[max(start, reached) : end])
        reached = max(reached, end)
    # Only tokens without text have empty spans; an id beyond the vocabulary has no name either.
    names = {
        position: tokenizer.convert_ids_to_tokens(token_ids[position]) or f"<id {token_ids[position]}>"
        for position, (start, end) in enumerate(offsets)
        if start == end
    }
    return pieces, names


def _rounded_teacher(record: TeacherRecord) -> TeacherRecord:
    return TeacherRecord(
        advantage=_rounded(record.advantage),
        token_advantages=_all_rounded(record.token_advantages),
        context=record.context,
        weights=_all_rounded(record.weights),
        log_ratios=_all_rounded(record.log_ratios),
        context_effects=record.context_effects and _all_rounded(record.context_effects),
        log_ratios_without_context=record.log_ratios_without_context
        and _all_rounded(record.log_ratios_without_context),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _all_rounded(values: Sequence[float | None]) -> list[float | None]:
    return [_rounded(value) for value in values]


class TrajectoryWriter:
    """Appends to ``run_dir/trajectories.jsonl`` until one more line would make it larger than ``max_bytes``.

    From then on nothing is written: short episodes must not be all that is left of the later iterations.
    ``tokenizer`` is the policy's, a Hugging Face one.
    """

    def __init__(self, run_dir: Path, tokenizer: Any, max_bytes: int) -> None:
        self._file = run_dir / TRAJECTORIES
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        self.full = False

    def write(
        self,
        iteration: int,
        trajectories: Sequence[Trajectory],
        teacher_records: TeacherRecords,
    ) -> dict[str, float]:
        """Writes one line per trajectory; returns how many were written and left out, and the file's MiB."""
        written = 0
        with self._file.open("ab") as file:
            for trajectory in trajectories if not self.full else ():
                record = trajectory_record(iteration, trajectory, teacher_records, self._tokenizer)
                line = record.model_dump_json().encode() + b"\n"
                if file.tell() + len(line) > self._max_bytes:
                    self.full = True
                    break
                file.write(line)
                written += 1
            num_bytes = file.tell()
        return {
            "records/trajectories_written": float(written),
            "records/trajectories_left_out": float(len(trajectories) - written),
            "records/trajectories_mib": num_bytes / 2**20,
        }

"""What a run recorded, as the groups that it trained on; read without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serl.config import ExperimentConfig
from serl.rollout.conversation import AnsweredPrompt
from serl.rollout.prompt import PromptEncoder
from serl.run.records import TRAJECTORIES, StepRecord, TrajectoryRecord
from serl.types import Step, Task, TeacherRecords, Trajectory, TrajectoryGroup, VersionSpan
from tools.inspect.reading import Problems, read_trajectories


@dataclass(frozen=True, slots=True)
class RecordedGroups:
    """``groups`` are complete, in the order of their iterations; ``records`` are of all their steps.

    ``num_left_out`` trajectories are of groups that were recorded in part, or damaged.
    """

    groups: list[TrajectoryGroup]
    records: TeacherRecords
    num_left_out: int


def read_groups(
    run_dir: Path, config: ExperimentConfig, encoder: PromptEncoder | None, problems: Problems
) -> RecordedGroups:
    """The groups in ``run_dir``; prompts have ids only with the policy's ``encoder``.

    Raises OSError if nothing was recorded.
    """
    found: dict[tuple[int, str], list[TrajectoryRecord]] = {}
    for record in read_trajectories(run_dir / TRAJECTORIES, problems):
        found.setdefault((record.iteration, record.group_id), []).append(record)
    groups: list[TrajectoryGroup] = []
    records: TeacherRecords = {}
    num_left_out = 0
    for own in found.values():
        if len(own) != config.training.group_size or not all(map(_is_complete, own)):
            num_left_out += len(own)
            continue
        trajectories = [_trajectory(record, encoder) for record in own]
        groups.append(TrajectoryGroup(own[0].group_id, trajectories[0].task, trajectories))
        for record in own:
            for index, step in enumerate(record.steps):
                if step.teacher is not None:
                    records[record.trajectory_id, index] = step.teacher
    return RecordedGroups(groups, records, num_left_out)


def _is_complete(record: TrajectoryRecord) -> bool:
    """Whether every number that is needed was finite."""
    return record.reward is not None and all(
        step.reward is not None and None not in step.old_logprobs for step in record.steps
    )


def _trajectory(record: TrajectoryRecord, encoder: PromptEncoder | None) -> Trajectory:
    assert record.reward is not None
    return Trajectory(
        trajectory_id=record.trajectory_id,
        group_id=record.group_id,
        rollout_index=record.rollout_index,
        task=Task(record.task_id, record.task_type),
        steps=_steps(record, encoder),
        reward=record.reward,
        success=record.success,
        end_reason=record.end_reason,
        seconds=record.seconds,
    )


def _steps(trajectory: TrajectoryRecord, encoder: PromptEncoder | None) -> list[Step]:
    steps: list[Step] = []
    for index, record in enumerate(trajectory.steps):
        before = None if record.continues is None else steps[record.continues]
        messages = trajectory.messages_of(index)
        ids = [] if encoder is None else _prompt_ids(record, messages, before, encoder)
        steps.append(_step(record, messages, ids))
    return steps


def _prompt_ids(
    record: StepRecord, messages: list[dict[str, str]], before: Step | None, encoder: PromptEncoder
) -> list[int]:
    if before is not None:
        continued = AnsweredPrompt.of_step(before, encoder).continued(record.messages, (), encoder)
        if continued is not None:
            return continued.token_ids
    return encoder.encode(messages)


def _step(record: StepRecord, messages: list[dict[str, str]], prompt_ids: list[int]) -> Step:
    """The anchor is not recorded: it is what was seen when the episode is played again."""
    assert record.reward is not None
    return Step(
        prompt_ids=prompt_ids,
        response_ids=record.token_ids,
        old_logprobs=[value for value in record.old_logprobs if value is not None],
        action_mask=[bool(in_action) for in_action in record.action_mask],
        version_spans=tuple(VersionSpan(*span) for span in record.version_spans),
        finish_reason=record.finish_reason,
        messages=tuple(messages),
        response_text=record.response,
        anchor="",
        action=record.action,
        action_valid=record.action_valid,
        feedback=record.feedback,
        next_observation=record.next_observation,
        reward=record.reward,
        continues=record.continues,
    )

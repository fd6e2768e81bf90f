from __future__ import annotations

import time
from pathlib import Path

import pytest
from learner_helpers import byte_tokenizer, experiment, sampled_groups

from serl.batch.assemble import (
    NothingToTrainError,
    assemble,
    build_rows,
    require_rows,
    trajectories_to_record,
)
from serl.batch.finisher import GroupFinisher
from serl.batch.group import FinishedGroup, add_evidence, finish
from serl.batch.rewards import has_variance
from serl.config import LoggingSection
from serl.rollout.prompt import PromptEncoder
from serl.rollout.told_prompt import with_context

ENCODER = PromptEncoder(byte_tokenizer())
TEACHER_ON = {"enabled": True, "lambda_decay_steps": 10}
EVERYTHING = frozenset(f"g0-{rollout_index}" for rollout_index in range(3))


def test_advantages_are_relative_to_the_group_and_scaled_where_negative(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], steps_per_trajectory=1)
    config = experiment(model_dir, advantage={"args": {"normalize_std": False}, "negative_scale": 0.2})
    rows, metrics = build_rows(groups, config, ENCODER, 0)
    assert [row.advantage for row in rows] == pytest.approx([5.0, -1.0])
    assert metrics["num_rows_with_advantage"] == 2


def test_an_invalid_action_costs_its_own_row_only(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0]], steps_per_trajectory=1)
    groups[0].trajectories[1].steps[0].action_valid = False
    config = experiment(
        model_dir, advantage={"args": {"normalize_std": False}}, env={"invalid_action_penalty": 0.5}
    )
    rows, _ = build_rows(groups, config, ENCODER, 0)
    assert [row.advantage for row in rows] == pytest.approx([0.25, -0.25])


def test_a_zero_variance_group_has_no_advantage_and_no_teacher_prompt(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0], [10.0, 0.0]])
    rows, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert [row.advantage != 0.0 for row in rows] == [False] * 4 + [True] * 4
    assert [row.teacher_prompt_ids is not None for row in rows] == [False] * 4 + [True] * 4
    assert metrics["num_rows_with_advantage"] == 4
    assert metrics["num_teacher_prompts"] == 4


@pytest.mark.parametrize(
    ("route", "distilled"),
    [("all", [1, 1, 1, 1]), ("failed", [1, 1, 0, 1]), ("zero_variance", [1, 1, 0, 0])],
)
def test_what_is_distilled_keeps_its_teacher_prompt_whatever_its_advantage(
    model_dir: Path, route: str, distilled: list[int]
) -> None:
    groups = sampled_groups(model_dir, [[0.0, 0.0], [10.0, 0.0]], steps_per_trajectory=1)
    hindsight = TEACHER_ON | {"objective": "distill", "distill": {"route": route}}
    rows, _ = build_rows(groups, experiment(model_dir, hindsight=hindsight), ENCODER, 0)
    assert [row.distilled for row in rows] == [bool(flag) for flag in distilled]
    expected = [bool(flag) or row.advantage != 0.0 for flag, row in zip(distilled, rows, strict=True)]
    assert [row.teacher_prompt_ids is not None for row in rows] == expected


def test_nothing_is_distilled_once_the_coefficient_is_0(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[0.0, 0.0], [10.0, 0.0]], steps_per_trajectory=1)
    both = {"objective": "both", "distill": {"coefficient_decay_steps": 3}}
    config = experiment(model_dir, hindsight=TEACHER_ON | both)
    rows, _ = build_rows(groups, config, ENCODER, 3)
    assert [row.distilled for row in rows] == [False] * 4
    assert [row.teacher_prompt_ids is not None for row in rows] == [False, False, True, True]


def test_the_teacher_prompt_is_the_prompt_with_the_evidence_after_the_last_user_message(
    model_dir: Path,
) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback="FEEDBACK-HERE")
    rows, _ = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    prompt, weighted = rows.row(0).prompt_ids, rows.row(0).teacher_prompt_ids
    assert weighted is not None
    ending = ENCODER.tokenizer.encode("<|end|><|assistant|>", add_special_tokens=False)
    beginning = prompt[: -len(ending)]
    assert weighted[: len(beginning)] == beginning
    assert weighted[-len(ending) :] == ending
    assert "FEEDBACK-HERE" in ENCODER.decode(weighted)


def test_a_row_says_what_its_teacher_reads_and_from_which_sources(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback="FEEDBACK-HERE")
    groups[0].trajectories[1].steps[1].feedback = None
    mode = {"sources": ["successful_sample", "immediate_feedback"], "combine": "first_available"}
    rows, metrics = build_rows(
        groups, experiment(model_dir, hindsight=TEACHER_ON | mode), ENCODER, 0, recorded=EVERYTHING
    )
    assert [row.evidence_sources for row in rows] == [
        *[("immediate_feedback",)] * 2,  # a success does not quote itself
        *[("successful_sample",)] * 2,
    ]
    assert "FEEDBACK-HERE" in (rows.row(0).context or "")
    assert metrics["evidence_share/successful_sample"] == metrics["evidence_share/immediate_feedback"] == 0.5
    assert metrics["evidence_share/any"] == 1.0
    feedback_only = experiment(model_dir, hindsight=TEACHER_ON)
    rows, metrics = build_rows(groups, feedback_only, ENCODER, 0, recorded=EVERYTHING)
    assert rows.row(3).context is None and rows.row(3).evidence_sources == ()
    assert metrics["evidence_share/any"] == metrics["evidence_share/immediate_feedback"] == 0.75


def test_what_a_judge_said_is_evidence_for_every_step_of_its_trajectory(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    judge = {"model": "judge", "base_url": "http://localhost/v1"}
    hindsight = TEACHER_ON | {"sources": ["judge_current_traj"], "judge": judge}
    config = experiment(model_dir, hindsight=hindsight)
    said = {"g0-0": "JUDGED-SO", "g0-1": None}
    rows, metrics = build_rows(groups, config, ENCODER, 0, said, EVERYTHING)
    assert ["JUDGED-SO" in (row.context or "") for row in rows] == [True, True, False, False]
    assert metrics["evidence_share/judge_current_traj"] == 0.5


def test_anchor_sizes_are_reported(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0, 0.0]])
    for trajectory in groups[0].trajectories:  # three steps in one room, and three in rooms of their own
        trajectory.steps[1].anchor = f"room of {trajectory.trajectory_id}"
    hindsight = TEACHER_ON | {"granularity": "anchor"}
    _, metrics = build_rows(groups, experiment(model_dir, hindsight=hindsight), ENCODER, 0)
    assert metrics["evidence_anchor_size_mean"] == pytest.approx(6 / 4)
    assert metrics["evidence_anchor_size_max"] == 3
    assert metrics["evidence_anchor_alone_share"] == 0.5


def test_rows_without_an_action_get_no_teacher_prompt_and_are_counted(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    step = groups[0].trajectories[0].steps[0]
    step.action_mask = [False] * len(step.action_mask)
    rows, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert rows.row(0).teacher_prompt_ids is None
    assert metrics["num_rows_without_action"] == 1


def test_a_reward_by_length_makes_the_shorter_success_the_better(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0]], steps_per_trajectory=4)
    del groups[0].trajectories[0].steps[2:]  # 10 / 2 against 10 / 4
    options = {"args": {"normalize_std": False, "across": "trajectories"}}
    plain, _ = build_rows(groups, experiment(model_dir, advantage=options), ENCODER, 0)
    assert {row.advantage for row in plain} == {0.0}
    by_length = experiment(model_dir, advantage=options | {"normalize_by_length": True})
    rows, _ = build_rows(groups, by_length, ENCODER, 0)
    assert [row.advantage for row in rows] == pytest.approx([1.25] * 2 + [-1.25] * 4)


def test_steps_without_evidence_get_no_teacher_prompt(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback=None)
    rows, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert [row.teacher_prompt_ids for row in rows] == [None] * 4
    assert metrics["num_teacher_prompts"] == 0


def test_no_teacher_prompt_is_built_once_lambda_is_zero(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON)
    for weights_seq_no, expected in ((9, True), (10, False), (11, False)):
        rows, metrics = build_rows(groups, config, ENCODER, weights_seq_no)
        assert all((row.teacher_prompt_ids is not None) == expected for row in rows)
        assert ("num_teacher_prompts" in metrics) == expected


def test_a_context_that_cannot_be_short_enough_is_left_out_and_counted(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    longest = max(len(step.prompt_ids) for t in groups[0].trajectories for step in t.steps)
    config = experiment(
        model_dir,
        hindsight=TEACHER_ON | {"max_context_length": longest + 20},
        rollout={"max_prompt_length": longest},
    )
    rows, metrics = build_rows(groups, config, ENCODER, 0)
    assert [row.teacher_prompt_ids for row in rows] == [None] * 4
    assert metrics["num_contexts_too_long"] == 4


def test_a_long_quotation_is_shortened_to_the_limit(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], steps_per_trajectory=12)
    config = experiment(
        model_dir,
        hindsight=TEACHER_ON | {"sources": ["successful_sample"], "max_context_length": 500},
        rollout={"max_prompt_length": 500},
    )
    rows, metrics = build_rows(groups, config, ENCODER, 0, recorded=EVERYTHING)
    weighted = [row.teacher_prompt_ids for row in rows if row.teacher_prompt_ids is not None]
    assert len(weighted) == 12  # the failed trajectory's steps; a success does not quote itself
    assert all(len(ids) <= 500 for ids in weighted)
    assert metrics["num_contexts_shortened"] == 12
    contexts = [row.context for row in rows if row.context is not None]
    left_out = sum(f"Step {number}:" not in context for context in contexts for number in range(1, 13))
    assert metrics["num_context_steps_left_out"] == left_out > 12
    assert all("oldest of 12 steps" in context and "Step 12:" in context for context in contexts)


def test_groups_without_any_step_make_no_row(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[0.0, 0.0]], steps_per_trajectory=0)
    rows, metrics = build_rows(groups, experiment(model_dir), ENCODER, 0)
    assert len(rows) == 0 and metrics["num_rows"] == 0


def test_a_batch_in_which_no_episode_took_a_step_is_an_error_that_says_why(model_dir: Path) -> None:
    config = experiment(model_dir)
    groups = sampled_groups(model_dir, [[0.0, 0.0], [0.0, 0.0]], steps_per_trajectory=0)
    for trajectory in (t for group in groups for t in group.trajectories):
        trajectory.end_reason = "prompt_too_long"
    finished = [finish(group, config) for group in groups]
    limit = config.rollout.max_prompt_length
    with pytest.raises(NothingToTrainError, match=rf"\(4 prompt_too_long\).*max_prompt_length = {limit}"):
        require_rows(finished, config)
    one_step = sampled_groups(model_dir, [[0.0, 0.0]], steps_per_trajectory=1)
    require_rows([*finished, *(finish(group, config) for group in one_step)], config)


def test_an_estimator_that_needs_the_batch_is_given_the_whole_batch(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0], [0.0, 0.0]], steps_per_trajectory=1)
    config = experiment(model_dir, advantage={"estimator": "reinforce_pp_baseline"})
    for group in groups:
        for step in group.steps:  # tokens weigh, so rows of one length make the numbers plain
            step.response_ids, step.old_logprobs = step.response_ids[:8], step.old_logprobs[:8]
            step.action_mask = step.action_mask[:8]
    rows, _ = build_rows(groups, config, ENCODER, 0)
    # Centred rewards 5, -5, 0, 0 over 32 tokens: variance 50 * 8 / 31.
    expected = 5.0 / (50.0 * 8 / 31) ** 0.5
    assert rows.advantages.tolist() == pytest.approx([expected, -expected, 0.0, 0.0], rel=1e-5)


def test_a_batch_does_not_depend_on_when_its_groups_were_finished(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0], [0.0, 0.0], [0.0, 10.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON)
    together, metrics = build_rows(groups, config, ENCODER, 0)
    backwards = [add_evidence(finish(group, config), config, ENCODER, {}) for group in groups[::-1]]
    one_by_one, others = assemble(backwards[::-1], config, 0)
    assert list(one_by_one) == list(together) and others == metrics


def test_a_teacher_prompt_of_a_row_is_dropped_where_its_group_is_trained_at_lambda_zero(
    model_dir: Path,
) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON)
    finished = [add_evidence(finish(group, config), config, ENCODER, {}) for group in groups]
    assert assemble(finished, config, 9)[0].has_teacher_prompt.all()
    rows, metrics = assemble(finished, config, 10)
    assert not rows.has_teacher_prompt.any() and rows.row(0).evidence_sources == ()
    assert "num_teacher_prompts" not in metrics


def test_controls_read_the_evidence_of_another_group_or_none(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0], [0.0, 10.0]])
    for index, group in enumerate(groups):
        for number, step in enumerate(group.steps):
            step.feedback = f"answer {number} of group {index}"
    config = experiment(model_dir, hindsight=TEACHER_ON | {"control": "other_group"})
    finisher = GroupFinisher(config, ENCODER)
    finished: list[FinishedGroup] = []
    for group in groups:
        finisher.submit(group, 0)
    deadline = time.monotonic() + 60.0
    while len(finished) < 2:
        assert time.monotonic() < deadline
        finished += finisher.take_finished()
        time.sleep(0.01)
    finisher.close()
    first, second = (one.rows for one in finished)
    assert not first.has_teacher_prompt.any()
    assert [f"answer {row} of group 0" in second.contexts[row] for row in range(4)] == [True] * 4

    config = experiment(model_dir, hindsight=TEACHER_ON | {"control": "no_evidence"})
    rows = add_evidence(finish(groups[0], config), config, ENCODER, {}).rows
    assert [row.teacher_prompt_ids for row in rows] == [row.prompt_ids for row in rows]


def test_only_recorded_rows_keep_the_text_of_their_context(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON)
    rows, _ = build_rows(groups, config, ENCODER, 0, recorded=frozenset({"g0-1"}))
    assert rows.recorded.tolist() == [False, False, True, True]
    assert [row.context is not None for row in rows] == [False, False, True, True]
    assert rows.has_teacher_prompt.all()


def test_whole_groups_are_recorded_and_zero_variance_groups_last(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], steps_per_trajectory=1)
    finished = [finish(group, experiment(model_dir)) for group in groups]

    def recorded(number: int) -> list[str]:
        settings = LoggingSection(trajectories_per_iteration=number)
        return [t.trajectory_id for t in trajectories_to_record(finished, 1, settings)]

    assert recorded(4) == ["g1-0", "g1-1", "g2-0", "g2-1"]
    assert recorded(3) == ["g1-0", "g1-1", "g2-0"]
    assert recorded(9) == ["g1-0", "g1-1", "g2-0", "g2-1", "g0-0", "g0-1"]
    assert recorded(0) == []


def test_trajectories_are_recorded_at_every_interval_th_iteration(model_dir: Path) -> None:
    finished = [finish(group, experiment(model_dir)) for group in sampled_groups(model_dir, [[10.0, 0.0]])]
    settings = LoggingSection(trajectories_interval=3)
    counts = {number: len(trajectories_to_record(finished, number, settings)) for number in range(1, 7)}
    assert counts == {1: 0, 2: 0, 3: 2, 4: 0, 5: 0, 6: 2}


def test_returns_by_length_have_variance_where_successes_differ_in_length(model_dir: Path) -> None:
    (group,) = sampled_groups(model_dir, [[10.0, 10.0]], steps_per_trajectory=4)
    del group.trajectories[0].steps[2:]
    assert not has_variance(group, normalize_by_length=False)
    assert has_variance(group, normalize_by_length=True)


def test_penalties_alone_are_no_variance_of_a_group(model_dir: Path) -> None:
    (group,) = sampled_groups(model_dir, [[0.0, 0.0]])
    group.trajectories[0].steps[0].action_valid = False
    config = experiment(model_dir, env={"invalid_action_penalty": 0.5})
    finished = finish(group, config)
    assert not finished.has_variance
    assert finished.rows.advantages[0] < 0.0


def test_context_goes_into_the_last_user_message() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert [message["content"] for message in with_context(messages, "X")] == ["a", "b", "c\n\nX"]
    with pytest.raises(ValueError, match="user message"):
        with_context([{"role": "system", "content": "a"}], "X")

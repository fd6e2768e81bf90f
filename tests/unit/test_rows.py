from __future__ import annotations

from pathlib import Path

import pytest
from learner_helpers import byte_tokenizer, experiment, sampled_groups, save_tiny_policy

from serl.batch.rows import build_rows
from serl.hindsight.context import with_context
from serl.rollout.prompt import PromptEncoder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


ENCODER = PromptEncoder(byte_tokenizer())
TEACHER_ON = {"enabled": True, "lambda_decay_steps": 10}


def test_advantages_are_relative_to_the_group_and_scaled_where_negative(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], steps_per_trajectory=1)
    config = experiment(model_dir, advantage={"normalize_std": False}, loss={"negative_advantage_scale": 0.2})
    samples, metrics = build_rows(groups, config, ENCODER, 0)
    assert [sample.advantage for sample in samples] == pytest.approx([5.0, -1.0])
    assert metrics["num_rows_with_advantage"] == 2


def test_an_invalid_action_costs_its_own_row_only(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0]], steps_per_trajectory=1)
    groups[0].trajectories[1].steps[0].action_valid = False
    config = experiment(model_dir, advantage={"normalize_std": False}, env={"invalid_action_penalty": 0.5})
    samples, _ = build_rows(groups, config, ENCODER, 0)
    assert [sample.advantage for sample in samples] == pytest.approx([0.25, -0.25])


def test_a_group_without_spread_has_no_advantage_and_no_teacher_prompt(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0], [10.0, 0.0]])
    samples, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert [sample.advantage != 0.0 for sample in samples] == [False] * 4 + [True] * 4
    assert [sample.teacher_prompt_ids is not None for sample in samples] == [False] * 4 + [True] * 4
    assert metrics["num_zero_variance_groups"] == 1
    assert metrics["num_teacher_prompts"] == 4


def test_the_teacher_prompt_is_the_prompt_with_the_evidence_after_the_last_user_message(
    model_dir: Path,
) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback="FEEDBACK-HERE")
    samples, _ = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    prompt, weighted = samples[0].prompt_ids, samples[0].teacher_prompt_ids
    assert weighted is not None
    ending = ENCODER.tokenizer.encode("<|end|><|assistant|>", add_special_tokens=False)
    beginning = prompt[: -len(ending)]
    assert weighted[: len(beginning)] == beginning
    assert weighted[-len(ending) :] == ending
    assert "FEEDBACK-HERE" in ENCODER.decode(weighted)


def test_a_sample_says_what_its_teacher_reads_and_from_which_sources(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback="FEEDBACK-HERE")
    groups[0].trajectories[1].steps[1].feedback = None
    mode = {"sources": ["successful_sample", "immediate_feedback"], "combine": "first_available"}
    samples, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON | mode), ENCODER, 0)
    assert [sample.evidence_sources for sample in samples] == [
        *[("immediate_feedback",)] * 2,  # a success does not quote itself
        *[("successful_sample",)] * 2,
    ]
    assert samples[0].context is not None and "FEEDBACK-HERE" in samples[0].context
    assert metrics["evidence_share/successful_sample"] == metrics["evidence_share/immediate_feedback"] == 0.5
    assert metrics["evidence_share/any"] == 1.0
    feedback_only = experiment(model_dir, hindsight=TEACHER_ON)
    samples, metrics = build_rows(groups, feedback_only, ENCODER, 0)
    assert samples[3].context is None and samples[3].evidence_sources == ()
    assert metrics["evidence_share/any"] == metrics["evidence_share/immediate_feedback"] == 0.75


def test_what_a_judge_said_is_evidence_for_every_step_of_its_trajectory(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON | {"sources": ["judge_current_traj"]})
    said = {"g0-0": "JUDGED-SO", "g0-1": None}
    samples, metrics = build_rows(groups, config, ENCODER, 0, said)
    assert ["JUDGED-SO" in (sample.context or "") for sample in samples] == [True, True, False, False]
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
    samples, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert samples[0].teacher_prompt_ids is None
    assert metrics["num_rows_without_action"] == 1


def test_a_reward_by_length_makes_the_shorter_success_the_better(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0]], steps_per_trajectory=4)
    del groups[0].trajectories[0].steps[2:]  # 10 / 2 against 10 / 4
    options = {"normalize_std": False, "across": "trajectories"}
    plain, _ = build_rows(groups, experiment(model_dir, advantage=options), ENCODER, 0)
    assert {sample.advantage for sample in plain} == {0.0}
    by_length = experiment(model_dir, advantage=options | {"normalize_by_length": True})
    samples, _ = build_rows(groups, by_length, ENCODER, 0)
    assert [sample.advantage for sample in samples] == pytest.approx([1.25] * 2 + [-1.25] * 4)


def test_steps_without_evidence_get_no_teacher_prompt(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback=None)
    samples, metrics = build_rows(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert [sample.teacher_prompt_ids for sample in samples] == [None] * 4
    assert metrics["num_teacher_prompts"] == 0


def test_no_teacher_prompt_is_built_once_lambda_is_zero(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON)
    for weights_seq_no, expected in ((9, True), (10, False), (11, False)):
        samples, metrics = build_rows(groups, config, ENCODER, weights_seq_no)
        assert all((sample.teacher_prompt_ids is not None) == expected for sample in samples)
        assert ("num_teacher_prompts" in metrics) == expected


def test_a_context_that_cannot_be_short_enough_is_left_out_and_counted(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    longest = max(len(step.prompt_ids) for t in groups[0].trajectories for step in t.steps)
    config = experiment(model_dir, hindsight=TEACHER_ON | {"max_context_length": longest + 20})
    samples, metrics = build_rows(groups, config, ENCODER, 0)
    assert [sample.teacher_prompt_ids for sample in samples] == [None] * 4
    assert metrics["num_contexts_too_long"] == 4


def test_a_long_quotation_is_shortened_to_the_limit(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], steps_per_trajectory=12)
    config = experiment(
        model_dir,
        hindsight=TEACHER_ON | {"sources": ["successful_sample"], "max_context_length": 500},
    )
    samples, metrics = build_rows(groups, config, ENCODER, 0)
    weighted = [sample.teacher_prompt_ids for sample in samples if sample.teacher_prompt_ids is not None]
    assert len(weighted) == 12  # the failed trajectory's steps; a success does not quote itself
    assert all(len(ids) <= 500 for ids in weighted)
    assert metrics["num_contexts_shortened"] == 12
    contexts = [sample.context for sample in samples if sample.context is not None]
    left_out = sum(f"Step {number}:" not in context for context in contexts for number in range(1, 13))
    assert metrics["num_context_steps_left_out"] == left_out > 12
    assert all("oldest of 12 steps" in context and "Step 12:" in context for context in contexts)


def test_groups_without_any_step_make_no_sample(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[0.0, 0.0]], steps_per_trajectory=0)
    assert build_rows(groups, experiment(model_dir), ENCODER, 0)[0] == []


def test_context_goes_into_the_last_user_message() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert [message["content"] for message in with_context(messages, "X")] == ["a", "b", "c\n\nX"]
    with pytest.raises(ValueError, match="user message"):
        with_context([{"role": "system", "content": "a"}], "X")

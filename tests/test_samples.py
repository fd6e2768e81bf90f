from __future__ import annotations

from pathlib import Path

import pytest
from learner_helpers import byte_tokenizer, experiment, sampled_groups, save_tiny_policy

from serl.learner.samples import build_samples, with_context
from serl.rollout.prompt import PromptEncoder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


ENCODER = PromptEncoder(byte_tokenizer())
TEACHER_ON = {"enabled": True, "lambda_decay_steps": 10}


def test_advantages_are_relative_to_the_group_and_scaled_where_negative(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], steps_per_trajectory=1)
    config = experiment(model_dir, advantage={"normalize_std": False}, loss={"negative_advantage_scale": 0.2})
    samples, metrics = build_samples(groups, config, ENCODER, 0)
    assert [sample.advantage for sample in samples] == pytest.approx([5.0, -1.0])
    assert metrics["num_rows_with_advantage"] == 2


def test_an_invalid_action_costs_its_own_row_only(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0]], steps_per_trajectory=1)
    groups[0].trajectories[1].steps[0].action_valid = False
    config = experiment(model_dir, advantage={"normalize_std": False}, env={"invalid_action_penalty": 0.5})
    samples, _ = build_samples(groups, config, ENCODER, 0)
    assert [sample.advantage for sample in samples] == pytest.approx([0.25, -0.25])


def test_a_group_without_spread_has_no_advantage_and_no_teacher_prompt(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 10.0], [10.0, 0.0]])
    samples, metrics = build_samples(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert [sample.advantage != 0.0 for sample in samples] == [False] * 4 + [True] * 4
    assert [sample.teacher_prompt_ids is not None for sample in samples] == [False] * 4 + [True] * 4
    assert metrics["num_groups_without_spread"] == 1
    assert metrics["num_teacher_prompts"] == 4


def test_the_teacher_prompt_is_the_prompt_with_the_evidence_after_the_last_user_message(
    model_dir: Path,
) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback="FEEDBACK-HERE")
    samples, _ = build_samples(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    prompt, taught = samples[0].prompt_ids, samples[0].teacher_prompt_ids
    assert taught is not None
    ending = ENCODER.tokenizer.encode("<|end|><|assistant|>", add_special_tokens=False)
    beginning = prompt[: -len(ending)]
    assert taught[: len(beginning)] == beginning
    assert taught[-len(ending) :] == ending
    assert "FEEDBACK-HERE" in ENCODER.decode(taught)


def test_steps_without_evidence_get_no_teacher_prompt(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], feedback=None)
    samples, metrics = build_samples(groups, experiment(model_dir, hindsight=TEACHER_ON), ENCODER, 0)
    assert [sample.teacher_prompt_ids for sample in samples] == [None] * 4
    assert metrics["num_teacher_prompts"] == 0


def test_no_teacher_prompt_is_built_once_lambda_is_zero(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    config = experiment(model_dir, hindsight=TEACHER_ON)
    for update_step, expected in ((9, True), (10, False), (11, False)):
        samples, metrics = build_samples(groups, config, ENCODER, update_step)
        assert all((sample.teacher_prompt_ids is not None) == expected for sample in samples)
        assert ("num_teacher_prompts" in metrics) == expected


def test_a_context_that_cannot_be_short_enough_is_left_out_and_counted(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]])
    longest = max(len(step.prompt_ids) for t in groups[0].trajectories for step in t.steps)
    config = experiment(model_dir, hindsight=TEACHER_ON | {"max_context_length": longest + 20})
    samples, metrics = build_samples(groups, config, ENCODER, 0)
    assert [sample.teacher_prompt_ids for sample in samples] == [None] * 4
    assert metrics["num_contexts_too_long"] == 4


def test_a_long_quotation_is_shortened_to_the_limit(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[10.0, 0.0]], steps_per_trajectory=12)
    config = experiment(
        model_dir,
        hindsight=TEACHER_ON | {"sources": ["successful_sample"], "max_context_length": 500},
    )
    samples, metrics = build_samples(groups, config, ENCODER, 0)
    taught = [sample.teacher_prompt_ids for sample in samples if sample.teacher_prompt_ids is not None]
    assert len(taught) == 12  # the failed trajectory's steps; a success does not quote itself
    assert all(len(ids) <= 500 for ids in taught)
    assert metrics["num_contexts_shortened"] == 12


def test_groups_without_any_step_make_no_sample(model_dir: Path) -> None:
    groups = sampled_groups(model_dir, [[0.0, 0.0]], steps_per_trajectory=0)
    assert build_samples(groups, experiment(model_dir), ENCODER, 0)[0] == []


def test_context_goes_into_the_last_user_message() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert [message["content"] for message in with_context(messages, "X")] == ["a", "b", "c\n\nX"]
    with pytest.raises(ValueError, match="user message"):
        with_context([{"role": "system", "content": "a"}], "X")

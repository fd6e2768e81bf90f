"""SERL against other trainers: what is measured of either side, and what TRL is handed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from envs.registry import make_provider
from serl.config.load import load_experiment
from serl.models.resolve import resolve_model
from serl.rollout.prompt import PromptEncoder
from serl.types import RolloutRequest, Step, Task, Trajectory
from tools.bench.figures import Figures
from tools.bench.peers.arms import arms, in_turn, report
from tools.bench.peers.iterations import (
    Iteration,
    append_iteration,
    env_steps_per_s,
    is_measured,
    late_success,
    processor_ms_per_step,
    read_iterations,
)
from tools.bench.peers.lockstep import LockstepPlayer
from tools.bench.peers.trl_padding import without_padding
from tools.bench.peers.trl_rows import TRLRows, cut_at

COURSE = [Iteration(30.0, 5.0, 700, 0.1), Iteration(40.0, 20.0, 500, 0.2), Iteration(60.0, 35.0, 1000, 0.4)]


def test_the_first_iteration_warms_up_and_is_not_measured():
    assert env_steps_per_s(COURSE) == pytest.approx(1500 / 30.0)
    assert processor_ms_per_step(COURSE) == pytest.approx(1000.0 * 30.0 / 1500)
    with pytest.raises(ValueError, match="one iteration alone"):
        env_steps_per_s(COURSE[:1])


def test_trls_micro_batch_is_chosen_where_it_is_trimmed_and_its_own_as_it_comes():
    options = {arm.name: arm.options for arm in arms(with_vllm=True, trimmed_rows=40)}
    assert options["TRL as shipped"] == ()
    assert options["TRL trimmed"] == ("--trimmed", "--rows-at-once=40")
    assert options["TRL trimmed, with vLLM"] == ("--trimmed", "--rows-at-once=40", "--vllm")
    left = {arm.name: arm.options for arm in arms(with_vllm=True, trimmed_rows=None)}
    assert left["TRL trimmed"] == ("--trimmed",)


def test_late_success_is_that_of_batches_done_in_the_last_half_of_the_time():
    assert late_success(COURSE) == pytest.approx((0.2 + 0.4) / 2)


@pytest.mark.parametrize(
    ("ended_s", "enough"), [([], False), ([90.0], False), ([30.0, 40.0], False), ([30.0, 40.0, 60.0], True)]
)
def test_a_turn_ends_when_iterations_after_the_first_took_long_enough(ended_s: list[float], enough: bool):
    assert is_measured(ended_s, measured_s=25.0) is enough


def test_iterations_of_another_process_are_read_as_they_were_written(tmp_path: Path):
    for iteration in COURSE:
        append_iteration(tmp_path / "iterations.jsonl", iteration)
    assert read_iterations(tmp_path / "iterations.jsonl") == COURSE


def test_at_equal_work_nothing_is_filtered_and_nothing_learned_in_hindsight():
    sides = arms(with_vllm=False, trimmed_rows=8)
    changed = {arm.name: set(arm.overrides) for arm in sides if arm.program == "serl_program"}
    assert changed == {
        "SERL's GRPO, equal work": {"hindsight.enabled=false", "training.filter_groups=false"},
        "SERL's GRPO as shipped": {"hindsight.enabled=false"},
        "SERL as shipped": set(),
    }
    for overrides in changed.values():
        load_experiment(Path("experiments/quickstart.yaml"), sorted(overrides))


def test_who_is_first_in_one_repetition_is_last_in_the_next():
    sides = arms(with_vllm=True, trimmed_rows=8)
    assert in_turn(sides, 0) == sides and in_turn(sides, 1) == sides[::-1]
    assert len(arms(with_vllm=False, trimmed_rows=8)) == len(sides) - 1


def test_ratios_are_of_turns_in_the_same_repetition(capsys: pytest.CaptureFixture[str]):
    slower = [Iteration(10.0, 5.0, 100, 0.0), Iteration(20.0, 10.0, 100, 0.1)]
    names = [arm.name for arm in arms(with_vllm=False, trimmed_rows=8)]
    courses = {name: [slower, slower] if name.startswith("TRL") else [COURSE, slower] for name in names}
    figures = Figures("peers")
    report(courses, figures)
    figures.summarise()
    out = capsys.readouterr().out
    assert "SERL's GRPO as shipped, env steps / TRL as shipped, env steps 3 (goal >= 10 MISSED)" in out
    assert "SERL as shipped, env steps / TRL trimmed, env steps 3;" in out


def _trajectory(reward: float, valid: list[bool]) -> Trajectory:
    steps = [
        Step([10, index], [20 + index], [-0.5], [True], (), "stop", (), "", "", "look", ok, None, "", 0.0)
        for index, ok in enumerate(valid)
    ]
    return Trajectory("t", "g", 0, Task("task"), steps, reward, reward > 0, "max_steps", 1.0, 0.0)


def test_a_step_is_a_row_and_blank_rows_without_a_reward_fill_a_group_up():
    rows = TRLRows()
    group = [_trajectory(10.0, [True, False]), _trajectory(0.0, [True])]
    rows.add_group(group, num_rows=5, invalid_action_penalty=1.5, blank_id=7)
    rows.add_group([_trajectory(0.0, [False])], num_rows=1, invalid_action_penalty=1.5, blank_id=7)
    assert rows.row_reward == [10.0, 8.5, 0.0, None, None, -1.5]
    assert rows.prompt_ids == [[10, 0], [10, 1], [10, 0], [7], [7], [10, 0]]
    assert rows.completion_ids == [[20], [21], [20], [7], [7], [20]]
    assert rows.env_mask == [[1], [1], [1], [0], [0], [1]]
    assert rows.output(has_logprobs=False)["logprobs"] is None
    assert rows.output(has_logprobs=True)["logprobs"][2:4] == [[-0.5], [0.0]]


@pytest.mark.parametrize(
    ("token_ids", "kept"), [([5, 6, 2, 0, 0], [5, 6, 2]), ([5, 3, 2], [5, 3]), ([5, 6], [5, 6])]
)
def test_a_response_ends_with_its_first_stop_token(token_ids: list[int], kept: list[int]):
    assert cut_at([3, 2], token_ids) == kept


def test_what_is_padding_in_all_rows_and_rows_that_are_blank_are_not_computed():
    # Prompts of up to 4 tokens, completions of up to 3; the second and the last two rows are blank.
    mask = torch.tensor(
        [
            [0, 1, 1, 1, 1, 1, 0],
            [0, 0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 0, 0],
        ]
    )
    ids = mask * torch.arange(1, 6).unsqueeze(1)
    seen: list[tuple[int, ...]] = []

    def compute(few_ids: Tensor, few_mask: Tensor, num_completion: int) -> tuple[Tensor, Tensor | None]:
        seen.append((*few_ids.shape, num_completion))
        completion = few_ids[:, -num_completion:].float() * few_mask[:, -num_completion:]
        return completion, 10.0 * completion

    logps, entropies = without_padding(compute, ids, mask, num_completion=3, rows_at_once=3)
    assert seen == [(2, 5, 2), (1, 2, 1)]
    assert logps.tolist() == [[1, 1, 0], [0, 0, 0], [3, 0, 0], [4, 0, 0], [0, 0, 0]]
    assert entropies is not None and torch.equal(entropies, 10.0 * logps)


def test_gradients_reach_the_rows_that_were_computed():
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]])
    weight = torch.ones((), requires_grad=True)
    logps, _ = without_padding(
        lambda ids, mask, kept: (weight * ids[:, -kept:], None), mask, mask, num_completion=2, rows_at_once=2
    )
    logps.sum().backward()
    assert weight.grad == 1.0


def test_all_episodes_ask_before_any_is_answered():
    experiment = load_experiment(Path("experiments/quickstart.yaml"), ["env.max_steps=3"])
    provider = make_provider(experiment.env.name, experiment.env.args)
    encoder = PromptEncoder.load(str(resolve_model(experiment.model.path)))
    tasks = provider.task_set("train").tasks[:2]
    asked: list[int] = []

    def respond(prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
        asked.append(len(prompts))
        actions = ["look", "inventory"] if len(asked) == 1 else ["look"] * len(prompts)
        return [(encoder.ids(f"<action>{action}</action>"), [-1.0]) for action in actions]

    requests = [RolloutRequest(task, "0", index, seed=0) for index, task in enumerate(tasks)]
    played = LockstepPlayer(experiment, provider, encoder).play(requests, respond)
    assert asked == [2, 2, 2]
    assert [trajectory.task for trajectory in played] == list(tasks)
    assert [[step.action for step in one.steps][:2] for one in played] == [
        ["look", "look"],
        ["inventory", "look"],
    ]
    assert all(step.action_valid for one in played for step in one.steps)

"""Sections left empty, modes, sources, and keys that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_helpers import MINIMAL, problem_of, write

from serl.config.load import load_experiment

JUDGED = (
    "hindsight.mode=judge_current_traj",
    "hindsight.judge.model=judge",
    "hindsight.judge.base_url=https://localhost/v1",
)
GPUS = ("serving.num_gpus_per_replica=1", "learner.num_gpus_per_learner=1")
GPU_SHARES = ("serving.num_gpus_per_replica=0.5", "learner.num_gpus_per_learner=0.5")


def test_a_section_without_lines_means_its_defaults(tmp_path: Path):
    experiment = load_experiment(write(tmp_path, MINIMAL + "learner:\n"))
    assert experiment.learner == load_experiment(write(tmp_path, MINIMAL)).learner


def test_a_mode_name_stands_for_sources_granularity_and_combination(tmp_path: Path):
    mode = "anchor_successful_sample_or_immediate_feedback"
    hindsight = load_experiment(write(tmp_path, MINIMAL), [f"hindsight.mode={mode}"]).hindsight
    assert hindsight.sources == ("successful_sample", "immediate_feedback")
    assert (hindsight.granularity, hindsight.combine) == ("anchor", "first_available")


def test_an_unknown_mode_or_source_is_told_with_the_nearest(tmp_path: Path):
    text = problem_of(tmp_path, MINIMAL, "hindsight.mode=imediate_feedback")
    assert "no such mode; did you mean 'immediate_feedback'?" in text
    text = problem_of(tmp_path, MINIMAL, "hindsight.sources=[next_observatio]")
    assert "no such source; did you mean 'next_observation'?" in text


OWN_SOURCE = """
from serl.hindsight.sources import CandidateAttempts, register_source

@register_source("NAME", title="Echo", attempts=CandidateAttempts.BEST_AND_WORST)
def NAME(attempt, group, *, times: int = 1):
    return None
"""


def test_a_source_of_ones_own_is_imported_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    modules = (
        ("own_source_for_config", "echo"),
        ("same_name_for_config", "echo"),
        ("built_in_for_config", "judge_current_traj"),
    )
    for module, name in modules:
        (tmp_path / f"{module}.py").write_text(OWN_SOURCE.replace("NAME", name), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = "own_source_for_config:echo"
    overrides = [f"hindsight.sources=[{own}]", f"hindsight.args={{'{own}': {{times: 2}}}}"]
    experiment = load_experiment(write(tmp_path, MINIMAL), overrides)
    assert experiment.hindsight.sources == (own,)
    for source, sentence in (
        ("own_source_for_config:discovery", "own_source_for_config registers no such source"),
        ("same_name_for_config:echo", "'echo' exists already: own_source_for_config:echo"),
        ("built_in_for_config:judge_current_traj", "'judge_current_traj' exists already"),
        ("no_such_module_at_all:echo", "cannot be imported: No module named 'no_such_module_at_all'"),
    ):
        text = problem_of(tmp_path, MINIMAL, f"hindsight.sources=[{source}]")
        assert f"hindsight.sources.0 = {source!r} on the command line: " in text and sentence in text


@pytest.mark.parametrize(
    ("overrides", "first", "second"),
    [
        (["rollout.max_prompt_length=4000"], "rollout.max_prompt_length", "model.max_model_len"),
        (
            ["serving.autoscaling.max_replicas=2", "serving.num_replicas=2"],
            "serving.num_replicas",
            "serving.autoscaling",
        ),
        (
            ["rollout.autoscaling.max_env_runners=2", "rollout.num_env_runners=2"],
            "rollout.num_env_runners",
            "rollout.autoscaling",
        ),
        (
            ["rollout.autoscaling.min_env_runners=3", "rollout.autoscaling.max_env_runners=2"],
            "rollout.autoscaling.min_env_runners",
            "rollout.autoscaling.max_env_runners",
        ),
        (
            ["rollout.autoscaling.max_episodes_per_replica=64", "serving.autoscaling.max_replicas=2"],
            "rollout.autoscaling.max_episodes_per_replica",
            "serving.autoscaling.target_ongoing_requests",
        ),
        (
            ["serving.autoscaling.min_replicas=3", "serving.autoscaling.max_replicas=2"],
            "serving.autoscaling.min_replicas",
            "serving.autoscaling.max_replicas",
        ),
        (["serving.max_num_batched_tokens=8"], "serving.max_num_batched_tokens", "serving.max_num_seqs"),
        (["serving.tensor_parallel_size=2"], "serving.tensor_parallel_size", "serving.num_gpus_per_replica"),
        (
            ["serving.engine_args.pipeline_parallel_size=2"],
            "serving.engine_args.pipeline_parallel_size",
            "serving.tensor_parallel_size",
        ),
        (
            ["serving.engine_args.data_parallel_size=2"],
            "serving.engine_args.data_parallel_size",
            "serving.tensor_parallel_size",
        ),
        (
            ["serving.num_gpus_per_replica=1", "serving.weight_transfer=shared_memory"],
            "serving.weight_transfer",
            "serving.num_gpus_per_replica",
        ),
        ([*GPUS, "serving.weight_transfer=nccl"], "serving.weight_transfer", "learner.num_learners"),
        (
            [*GPUS, "serving.weight_transfer=ipc"],
            "serving.weight_transfer",
            "serving.num_gpus_per_replica = 1 and learner.num_gpus_per_learner = 1",
        ),
        (["serving.sleep_during_updates=true"], "serving.sleep_during_updates", "serving.weight_transfer"),
        (
            [*GPU_SHARES, "serving.num_replicas=2", "serving.weight_transfer=ipc"],
            "serving.weight_transfer",
            "replicas and learner make 1.5 GPUs",
        ),
        (
            [*GPU_SHARES, "learner.num_learners=2", "serving.weight_transfer=ipc"],
            "serving.weight_transfer",
            "learner.num_learners = 2",
        ),
        (["serving.weight_transfer=nccl"], "serving.weight_transfer", "serving.num_gpus_per_replica"),
        (
            ["serving.weight_transfer=ipc", "serving.num_gpus_per_replica=1"],
            "serving.weight_transfer",
            "learner.num_gpus_per_learner",
        ),
        (
            ["learner.lr_schedule=linear", "learner.lr_warmup_updates=150"],
            "learner.lr_warmup_updates",
            "training.num_iterations",
        ),
        (["model.attention=flash_attention_2"], "model.attention", "learner.num_gpus_per_learner"),
        (["model.attention=flash_attention_2"], "model.attention", "model.dtype"),
        (["hindsight.sources=[]"], "hindsight.sources", "hindsight.enabled"),
        (
            ["hindsight.mode=next_observation", "hindsight.granularity=anchor"],
            "hindsight.mode",
            "hindsight.granularity",
        ),
        (["hindsight.mode=judge_current_traj"], "hindsight.judge.model", "hindsight.judge.base_url"),
        ([*JUDGED, "hindsight.judge.model=null"], "hindsight.judge.model", "hindsight.sources"),
        (
            [*JUDGED, "training.iteration_timeout_s=30"],
            "hindsight.judge.max_wait_s",
            "training.iteration_timeout_s",
        ),
        (
            [
                *JUDGED[1:],
                "hindsight.sources=[judge_current_traj, judge_current_traj_on_successful_sample]",
            ],
            "judge_current_traj",
            "judge_current_traj_on_successful_sample",
        ),
        (["hindsight.max_context_length=99"], "hindsight.max_context_length", "rollout.max_prompt_length"),
        (["loss.name=gspo"], "loss.name", "loss.aggregation"),
        (["evaluation.split=train"], "evaluation.split", "env.train_split"),
    ],
)
def test_keys_that_contradict_each_other_are_both_named(
    overrides: list[str], first: str, second: str, tmp_path: Path
):
    lines = problem_of(tmp_path, MINIMAL, *overrides).splitlines()
    assert any(first in line and second in line and "contradicts" in line for line in lines), lines


def test_a_dual_clip_below_one_is_refused_and_zero_turns_it_off(tmp_path: Path):
    text = problem_of(tmp_path, MINIMAL, "loss.args.dual_clip=0.5")
    assert "loss.args.dual_clip = 0.5 on the command line: must be greater than 1" in text
    assert load_experiment(write(tmp_path, MINIMAL), ["loss.args.dual_clip=0"]).loss.args == {"dual_clip": 0}


def test_a_judge_needs_nothing_where_nothing_is_judged(tmp_path: Path):
    load_experiment(
        write(tmp_path, MINIMAL), ["hindsight.judge.model=judge", "hindsight.judge.max_wait_s=9999"]
    )
    load_experiment(
        write(tmp_path, MINIMAL), ["hindsight.mode=judge_current_traj", "hindsight.enabled=false"]
    )
    judged = [*JUDGED[1:], "hindsight.sources=[judge_current_traj, immediate_feedback]"]
    assert load_experiment(write(tmp_path, MINIMAL), judged).hindsight.judge.model == "judge"


@pytest.mark.parametrize(
    "address",
    ["localhost:8000/v1", "ftp://host/v1", "http://", "http://[::1", "http://host:99999/v1"],
)
def test_a_judges_address_must_be_one(address: str, tmp_path: Path):
    text = problem_of(tmp_path, MINIMAL, *JUDGED, f"hindsight.judge.base_url='{address}'")
    assert "hindsight.judge.base_url: must be an address such as https://host/v1" in text


@pytest.mark.parametrize("address", ["https://me:SECRET@host/v1", "https://host/v1?key=SECRET"])
def test_a_key_in_the_judges_address_is_refused_and_not_quoted(address: str, tmp_path: Path):
    text = problem_of(tmp_path, MINIMAL, *JUDGED, f"hindsight.judge.base_url='{address}'")
    assert "a key belongs in the variable of api_key_env" in text and "SECRET" not in text


def test_a_key_instead_of_a_variables_name_is_refused(tmp_path: Path):
    for key in ("sk-proj-1234", "gsk_a1B2"):
        text = problem_of(tmp_path, MINIMAL, f"hindsight.judge.api_key_env={key}")
        assert "hindsight.judge.api_key_env: must be the name of the env" in text and key not in text


def test_groups_that_distillation_trains_on_are_not_filtered(tmp_path: Path):
    filtered = ("hindsight.objective=distill", "training.filter_groups=true")
    text = problem_of(tmp_path, MINIMAL, *filtered)
    assert "hindsight.objective = 'distill' contradicts training.filter_groups = true" in text
    assert load_experiment(write(tmp_path, MINIMAL), [*filtered, "hindsight.enabled=false"])


def test_adapters_are_sent_alone_where_replicas_have_gpus_that_they_keep(tmp_path: Path):
    def sends(*overrides: str) -> bool:
        return load_experiment(write(tmp_path, MINIMAL), overrides).sends_adapters

    asleep = (*GPU_SHARES, "serving.weight_transfer=ipc", "serving.sleep_during_updates=true")
    assert not sends(*GPUS) and not sends("model.lora.rank=4") and sends("model.lora.rank=4", *GPUS)
    assert not sends("model.lora.rank=4", *asleep)
    assert sends("model.lora.broadcast=adapters") and not sends("model.lora.broadcast=merged", *GPUS)
    alone = "model.lora.broadcast=adapters"
    text = problem_of(tmp_path, MINIMAL, alone, *asleep)
    assert "model.lora.broadcast = adapters contradicts serving.sleep_during_updates = true" in text
    text = problem_of(tmp_path, MINIMAL, alone, "model.lora.rank=513")
    assert "model.lora.rank = 513 contradicts model.lora.broadcast = adapters" in text
    assert not sends("model.lora.rank=513")


def test_adapters_drop_nothing_and_have_a_layer(tmp_path: Path):
    text = problem_of(tmp_path, MINIMAL, "model.lora.dropout=0.1", "model.lora.target_modules=[]")
    assert "model.lora.dropout = 0.1 on the command line: must be 0: with dropout" in text
    assert "model.lora.target_modules = [] on the command line: must name a linear layer" in text
    experiment = load_experiment(write(tmp_path, MINIMAL), ["model.lora.target_modules=q_proj"])
    assert experiment.model.lora is not None and experiment.model.lora.target_modules == ("q_proj",)

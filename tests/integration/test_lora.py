"""Adapters that are trained in place of the policy's weights: what learners compute, keep and publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import (
    distributions,
    learner_config,
    learner_group,
    local_learner,
    reference_logprobs,
    sampled_groups,
    update,
)
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from serl.learner.learner_group import SERLLearnerGroup
from serl.learner.publishing import published_weights
from serl.learner.rl_module import CausalLMModule
from serl.learner.state import LearnerStateError
from serl.learner.token_batch import Layout, make_token_batch
from serl.models.merge import base_of, write_merged
from serl.models.resolve import ModelPathError, resolve_model
from serl.models.weights import named_weights, weight_shapes
from serl.run.preflight.model import examine_model
from serl.run.run_dir import RunDir
from serl.run.train import whole_policy
from serl.types import TrajectoryGroup
from tools.merge_lora import main as merge_lora

LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
TEACHER = {"enabled": True, "mixing_lambda": 0.5, "lambda_decay_steps": 0, "teacher_sync_interval": 2}
PROMPTS, RESPONSES = [[5, 6, 7], [5, 6, 9, 11], [5, 6, 7]], [[8, 9, 10], [12, 13], [8, 3]]


@pytest.fixture(scope="module")
def groups(model_dir: Path) -> list[TrajectoryGroup]:
    return sampled_groups(model_dir, [[10.0, 0.0, 0.0], [10.0, 10.0, 0.0]])


def with_adapters(model_dir: Path, **sections: Any) -> SERLLearnerGroup:
    return learner_group(model_dir, **{"model": {"path": str(model_dir), "lora": LORA}} | sections)


def scored(scorer: Any) -> Tensor:
    with torch.no_grad():
        return scorer(make_token_batch(PROMPTS, RESPONSES, None, layout=scorer.layout)).logprobs


def scored_by_transformers(model: Any) -> Tensor:
    with torch.no_grad():
        rows = [distributions(model, *row) for row in zip(PROMPTS, RESPONSES, strict=True)]
    pairs = zip(rows, RESPONSES, strict=True)
    return torch.cat([row.gather(1, torch.tensor(ids)[:, None])[:, 0] for row, ids in pairs])


def base_scores(model_dir: Path) -> Tensor:
    rows = [reference_logprobs(model_dir, *row) for row in zip(PROMPTS, RESPONSES, strict=True)]
    return torch.tensor([logprob for row in rows for logprob in row])


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_learners_score_as_transformers_with_peft_does_before_and_after_an_update(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = with_adapters(model_dir)
    policy = local_learner(group).policy
    assert_close(scored(policy), base_scores(model_dir))
    metrics = [update(group, groups, number) for number in range(2)]
    assert metrics[0]["train_inference_mismatch_on_policy"] < 1e-5
    written = group.save(tmp_path, timeout_s=60.0)
    assert {"policy/adapter_config.json", "policy/adapter_model.safetensors"} < written.keys()
    assert not (tmp_path / "policy" / "config.json").exists()
    saved = sum((tmp_path / name).stat().st_size for name in written if name.endswith(".safetensors"))
    assert group.saved_bytes() < saved < 2.5 * group.saved_bytes(), "headers are large beside tiny adapters"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), tmp_path / "policy")
    expected = scored_by_transformers(model)
    assert (expected - base_scores(model_dir)).abs().max() > 0.01
    assert_close(scored(policy), expected)

    assert merge_lora([str(tmp_path), str(tmp_path / "merged")]) == 0
    whole = AutoModelForCausalLM.from_pretrained(resolve_model(str(tmp_path / "merged")))
    assert_close(scored_by_transformers(whole), expected)
    assert merge_lora([str(tmp_path), str(tmp_path / "merged")]) == 2, "it is there already"
    with pytest.raises(ModelPathError, match="policy holds adapters, no whole policy; python -m tools.merge"):
        resolve_model(str(tmp_path / "policy"))


def test_adapters_that_are_damaged_or_others_are_not_merged(model_dir: Path, tmp_path: Path) -> None:
    with_adapters(model_dir).save(tmp_path, timeout_s=60.0)
    policy, merged = tmp_path / "policy", tmp_path / "merged"
    weights, settings = policy / "adapter_model.safetensors", policy / "adapter_config.json"
    whole, known = weights.read_bytes(), settings.read_text()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ModelPathError, match="is not a whole file of weights"):
        write_merged(model_dir, policy, merged)
    save_file({"other": torch.zeros(2)}, weights)
    with pytest.raises(ModelPathError, match=r"adapter_model.safetensors lacks \d+ weights of the adapters"):
        write_merged(model_dir, policy, merged)
    weights.write_bytes(whole)
    settings.write_text(json.dumps(json.loads(known) | {"r": "x"}))
    with pytest.raises(ModelPathError, match="holds no adapters of the model"):
        write_merged(model_dir, policy, merged)
    settings.write_text(json.dumps(json.loads(known) | {"base_model_name_or_path": 5}))
    with pytest.raises(ModelPathError, match="that names a base"):
        base_of(policy)


def test_adapters_of_a_checkpoint_are_evaluated_as_a_whole_policy_that_is_gone_afterwards(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    group = with_adapters(model_dir)
    update(group, groups)
    group.save(tmp_path / "saved", timeout_s=60.0)
    run_dir = RunDir.create(group._experiment.model_copy(update={"output_dir": str(tmp_path / "runs")}))
    with whole_policy(group._experiment, tmp_path / "saved" / "policy", run_dir) as (experiment, folder):
        assert experiment.model.lora is None and not experiment.sends_adapters
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert_close(scored_by_transformers(model), scored(local_learner(group).policy))
        assert (folder / "tokenizer.json").is_file() and (folder / "chat_template.jinja").is_file()
    assert not folder.exists()
    whole = learner_group(model_dir)._experiment
    with whole_policy(whole, model_dir, run_dir) as (experiment, folder):
        assert experiment is whole and folder == model_dir


def test_in_bfloat16_the_base_is_rounded_and_what_is_trained_is_not(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    model = {"path": str(model_dir), "dtype": "bfloat16", "lora": LORA}
    group = learner_group(model_dir, model=model, hindsight=TEACHER)
    metrics = [update(group, groups, number) for number in range(2)]
    assert 1e-4 < metrics[0]["train_inference_mismatch_on_policy"] < 0.3
    assert metrics[1]["num_optimizer_steps"] == 1.0
    policy = local_learner(group).policy
    dtypes = {".lora_" in name: weight.dtype for name, weight in named_weights(policy.model).items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert {buffer.dtype for name, buffer in policy.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_only_adapters_change_and_both_factors_do(model_dir: Path, groups: list[TrajectoryGroup]) -> None:
    group = with_adapters(model_dir)
    learner = local_learner(group)
    before = {name: weight.clone() for name, weight in named_weights(learner.policy.model).items()}
    for number in range(2):
        update(group, groups, number)
    after = named_weights(learner.policy.model)
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    # Two layers, three of whose seven linear layers have an adapter of two factors.
    assert changed == {name for name in after if ".lora_" in name} and len(changed) == 2 * 3 * 2
    held = learner._optimizer.state
    assert len(held) == len(changed)
    assert sum(state["exp_avg"].numel() for state in held.values()) == sum(after[n].numel() for n in changed)


def test_merged_weights_are_those_of_a_whole_policy_that_answers_the_same(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = with_adapters(model_dir)
    for number in range(2):
        update(group, groups, number)
    policy = local_learner(group).policy
    weights = published_weights(policy, torch.float32, as_adapters=False)
    merged = dict(weights)
    assert {name: spec.shape for name, spec in weights.specs.items()} == weight_shapes(str(model_dir))
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.load_state_dict(merged, strict=False)
    assert_close(scored_by_transformers(model), scored(policy))
    alone = published_weights(policy, torch.float32, as_adapters=True)
    # q 32 → 32, v 32 → 16, down 64 → 32, of rank 4, in two layers.
    sizes = 2 * 4 * ((32 + 32) + (32 + 16) + (64 + 32))
    assert sum(tensor.numel() for _, tensor in alone) == sizes < sum(w.numel() for w in merged.values()) / 5


def test_teacher_and_reference_are_the_policys_own_model_with_other_adapters(
    model_dir: Path, groups: list[TrajectoryGroup]
) -> None:
    group = with_adapters(model_dir, hindsight=TEACHER, loss={"kl_coefficient": 0.1})
    learner = local_learner(group)
    teacher, reference = learner.teacher, learner._reference
    assert teacher is not None and reference is not None
    trained = {id(weight) for weight in learner.policy.trained_weights().values()}
    copied = {id(weight) for weight in teacher.trained_weights().values()}
    held = {id(parameter) for parameter in learner.policy.parameters()}
    assert len(copied) == len(trained) and not copied & trained and copied < held
    assert reference.trained_weights() == {}
    update(group, groups, 0)
    assert_close(scored(teacher), base_scores(model_dir))
    after_first = scored(learner.policy)
    metrics = update(group, groups, 1)
    assert metrics["reference_kl"] > 0.0
    assert_close(scored(teacher), base_scores(model_dir))
    after_second = scored(learner.policy)
    assert (after_second - after_first).abs().max() > 1e-3
    update(group, groups, 2)
    assert_close(scored(teacher), after_second)
    assert_close(scored(reference), base_scores(model_dir))
    assert (scored(learner.policy) - after_second).abs().max() > 1e-3, "the policy's adapters are back"


def test_layers_that_are_not_there_are_told_before_a_run_starts(model_dir: Path) -> None:
    (wrong,) = unknown_targets(["q_proj", "up_prj"], model_dir)
    assert "model.lora.target_modules = 'up_prj': no linear layer of the policy has this name" in wrong
    assert "; did you mean 'up_proj'? Its decoder layers have q_proj, k_proj, v_proj, o_proj, " in wrong
    # Adapters of it would change the embeddings that it is tied to.
    (wrong,) = unknown_targets(["lm_head"], model_dir)
    assert "'lm_head': no linear layer of the policy has this name" in wrong
    assert unknown_targets(["down_proj"], model_dir) == []


def unknown_targets(targets: list[str], model_dir: Path) -> list[str]:
    model = {"path": str(model_dir), "lora": {"target_modules": targets}, "max_model_len": 1024}
    lengths = {"max_prompt_length": 512}
    experiment = learner_config(model_dir, model=model, rollout=lengths).experiment
    return [finding.text for finding in examine_model(experiment) if finding.verdict == "wrong"]


def built(model_dir: Path, attention: str, checkpointing: bool) -> CausalLMModule:
    model = {"path": str(model_dir), "lora": LORA, "attention": attention}
    config = learner_config(model_dir, model=model, learner={"gradient_checkpointing": checkpointing})
    spec = config.get_default_rl_module_spec()
    spec.inference_only = False
    module = spec.build()
    assert isinstance(module, CausalLMModule)
    torch.manual_seed(1)
    for weight in module.trained_weights().values():
        torch.nn.init.normal_(weight, std=0.1)  # B would be 0, and the gradient of A with it
    return module


def gradient_of(module: CausalLMModule, layout: Layout) -> Tensor:
    assert module.layout == layout
    logprobs = module(make_token_batch(PROMPTS, RESPONSES, None, layout=layout)).logprobs
    (logprobs * torch.linspace(-1.0, 1.0, len(logprobs))).sum().backward()
    gradients = [weight.grad for weight in module.trained_weights().values()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_tree_has_the_gradient_of_its_rows(model_dir: Path, checkpointing: bool) -> None:
    expected = gradient_of(built(model_dir, "eager", False), "padded")
    found = gradient_of(built(model_dir, "sdpa", checkpointing), "tree")
    assert len(expected) == 2 * 4 * ((32 + 32) + (32 + 16) + (64 + 32))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_run_goes_on_from_adapters_bit_for_bit_and_from_no_others(
    model_dir: Path, groups: list[TrajectoryGroup], tmp_path: Path
) -> None:
    original = with_adapters(model_dir, hindsight=TEACHER)
    for number in range(2):
        update(original, groups, number)
    original.save(tmp_path, timeout_s=60.0)
    expected = update(original, groups, 2)
    resumed = with_adapters(model_dir, hindsight=TEACHER)
    resumed.load(tmp_path, timeout_s=60.0)
    metrics = update(resumed, groups, 2)
    for name in ("loss", "grad_norm", "teacher_weight_mean"):
        assert metrics[name] == expected[name]
    after = local_learner(original).policy.trained_weights()
    for name, weight in local_learner(resumed).policy.trained_weights().items():
        assert weight.equal(after[name])
    assert json.loads((tmp_path / "learner" / "learner.json").read_text())["lora"] == LORA
    for other in (None, LORA | {"alpha": 16}):
        group = learner_group(model_dir, model={"path": str(model_dir), "lora": other})
        with pytest.raises(LearnerStateError, match='was saved with model.lora = {"rank": 4, "alpha": 8'):
            group.load(tmp_path, timeout_s=60.0)

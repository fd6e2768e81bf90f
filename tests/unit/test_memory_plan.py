"""The memory plan of `serl-run --check`: Qwen2.5-7B by hand, and what is said of what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serl.config import ExperimentConfig
from serl.config.load import load_experiment
from serl.models.shape import ModelShape, UnknownShapeError
from serl.run.preflight import memory_plan
from serl.run.preflight.machine import fit
from serl.run.preflight.memory import Machine, judge_memory

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SEVEN_B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
GB = 1e9
H100 = 80 * 2.0**30
ROOMY = Machine(gpu=H100, memory=1000 * GB, shared_memory=100 * GB, disk=1000 * GB)


def seven_b(*overrides: str) -> ExperimentConfig:
    return load_experiment(EXPERIMENTS / "alfworld_qwen2.5_7b.yaml", overrides)


def shape(**changes: Any) -> ModelShape:
    return ModelShape.of(SEVEN_B | changes)


def in_gb(parts: dict[str, float]) -> dict[str, float]:
    return {what: round(size / GB, 1) for what, size in parts.items()}


def test_matrices_of_a_config_add_up_to_its_weights():
    # 28 · (2·3584·(3584 + 512) + 3·3584·18944) in layers, 2·152064·3584 outside.
    assert shape().num_weights == 28 * (29_360_128 + 203_685_888) + 1_089_994_752 == 7_615_283_200
    assert shape(tie_word_embeddings=True).num_weights == 7_615_283_200 - 152064 * 3584
    assert ModelShape.of(SEVEN_B, 7_615_616_512).num_weights == 7_615_616_512
    assert ModelShape.of({"text_config": SEVEN_B}) == shape()


def test_experts_count_all_in_weights_and_some_in_activations():
    # A layer: 29 360 128 of attention, 3584 · 8 of the router, 8 · 3 · 3584 · 1000 of experts.
    moe = shape(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=1000)
    assert moe.layer_weights == 29_360_128 + 28_672 + 86_016_000
    assert moe.active_mlp_width == 2000


@pytest.mark.parametrize("config", [{}, {"hidden_size": 8}, SEVEN_B | {"hidden_size": "wide"}])
def test_a_config_without_sizes_is_told(config: dict[str, Any]):
    with pytest.raises(UnknownShapeError, match="config.json has "):
        ModelShape.of(config)


def test_a_learner_of_four_holds_what_was_worked_out_by_hand():
    """By hand, for 7.615 · 10⁹ weights: 4, 8, 2 and 4 bytes of each on 4 learners, and 1 + 1 GB of CUDA."""
    kept = in_gb(memory_plan.kept_by_learner(shape(), seven_b()))
    by_hand = {"weights": 7.6, "optimizer": 15.2, "teacher": 3.8, "gradients": 7.6, "CUDA and NCCL": 2.0}
    assert kept == by_hand
    (update, reducing, sending) = memory_plan.learner_plans(shape(), seven_b())
    passing = in_gb({what: size for what, size in update.parts.items() if what not in by_hand})
    assert passing == {
        "gathered layers": 3.1,  # 2 · (2 · 152064 · 3584 + 2 · 233 046 016): roots 2.2, two layers 0.9
        "gradients on their way": 2.5,  # 2 · 152064 · 3584 + 6 · 233 046 016
        "layer inputs": 3.3,  # 16384 · 3584 · 28 · 2
        # 16384 · (16·3584 + 4·4096 + 8·18944 + 4·18944); the logits of 5461 tokens would be 3.9.
        "one layer again, or logits": 4.9,
    }
    # An independent estimate from the design was 47 GB.
    assert update.total / GB == pytest.approx(47.0, rel=0.1)
    assert memory_plan.peak([update, reducing, sending]) is update
    # 36.3 kept, and 8 bytes of 1.09 · 10⁹ weights; without gradients, but two buffers of 2.1.
    assert reducing.total / GB == pytest.approx(36.3 + 8.7, abs=0.1)
    assert sending.total / GB == pytest.approx(28.7 + 2.1 + 2.1, abs=0.1)


def test_the_parts_of_an_update_agree_with_the_estimate_of_the_design():
    """GB a GPU: shard, AdamW, teacher, gradients, root, inputs of layers, what one layer keeps, logits."""
    update = memory_plan.learner_plans(shape(), seven_b())[0].parts
    root = 2 * shape().outside_layers
    for found, estimate in (
        (update["weights"], 7.6),
        (update["optimizer"], 15.2),
        (update["teacher"], 3.8),
        (update["gradients"], 7.6),
        (root, 2.2),
        (update["layer inputs"], 3.3),
        (16384 * memory_plan.saved_bytes_per_token(shape(), seven_b()), 3.6),
        (memory_plan.num_scored_tokens(seven_b()) * 152064 * 4, 3.6),
    ):
        assert found / GB == pytest.approx(estimate, rel=0.1)


def test_settings_move_what_they_are_for():
    def update(*overrides: str) -> dict[str, float]:
        return in_gb(memory_plan.learner_plans(shape(), seven_b(*overrides))[0].parts)

    # 28 layers of 16384 · 225 280 bytes.
    assert update("learner.gradient_checkpointing=false")["activations"] == 103.3
    assert update("loss.kl_coefficient=0.1")["reference"] == 3.8
    assert "teacher" not in update("hindsight.enabled=false")
    assert update("learner.num_learners=8")["optimizer"] == 7.6
    whole = update("learner.num_learners=1")
    assert whole["weights"] == 30.5 and whole["weights in bfloat16"] == 15.2
    assert "gathered layers" not in whole


def test_of_adapters_a_learner_holds_gradients_and_moments_and_of_the_rest_bfloat16():
    """Rank 16 in 28 layers of q and o 3584 → 3584, k and v 3584 → 512, three matrices 3584 ↔ 18944."""
    adapters = 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    one = ["model.lora={rank: 16}", "learner.num_learners=1"]
    assert memory_plan.num_trained(shape(), seven_b(*one)) == adapters == 40_370_176
    some = seven_b("model.lora={rank: 8, target_modules: [q_proj, v_proj]}")
    assert memory_plan.num_trained(shape(), some) == 28 * 8 * (7168 + 4096)
    experiment = seven_b(*one, "loss.kl_coefficient=0.1")
    kept = memory_plan.kept_by_learner(shape(), experiment)
    megabytes = {what: round(size / 1e6) for what, size in kept.items()}
    # 2 bytes of each of 7.615 · 10⁹, and 4, 8, 4 and 4 of each of 40 · 10⁶; the reference is nothing more.
    by_hand = {"base": 15231, "weights": 161, "optimizer": 323, "teacher": 161, "gradients": 161}
    assert megabytes == by_hand | {"CUDA and NCCL": 2000}
    update = memory_plan.learner_plans(shape(), experiment)[0].parts
    assert "weights in bfloat16" not in update
    assert round(update["layer inputs"] / GB, 1) == 3.3  # in bfloat16, too
    # Versions of 2 bytes, checkpoints of 4 in PEFT's folder and 16 of learners, and no others.
    assert memory_plan.num_published(shape(), experiment) == adapters
    assert memory_plan.checkpoint_bytes(shape(), experiment) == (4 + 4 + 8 + 4) * adapters
    merged = seven_b("model.lora={rank: 16, broadcast: merged}")
    assert memory_plan.num_published(shape(), merged) == shape().num_weights
    sharded = memory_plan.learner_plans(shape(), seven_b("model.lora={rank: 16}"))
    assert round(sharded[0].parts["base"] / GB, 1) == 3.8
    assert sharded[0].parts["gradients on their way"] == 6 * (adapters // 28)
    assert memory_plan.peak(sharded) is sharded[0]


def test_a_replica_keeps_contexts_in_what_weights_leave():
    plan = memory_plan.replica_plan(shape(), seven_b())
    assert in_gb(plan.parts)["weights"] == 15.2
    # Keys and values of 4 heads of 128 in 28 layers, two bytes each: 57 344 a token.
    assert memory_plan.context_bytes(shape(), seven_b()) == 57_344 * 4096
    halves = seven_b("serving.tensor_parallel_size=2", "serving.num_gpus_per_replica=2")
    assert in_gb(memory_plan.replica_plan(shape(), halves).parts)["weights"] == 7.6


def test_a_node_holds_three_versions_and_the_checkpoints():
    assert memory_plan.WEIGHT_VERSIONS * memory_plan.version_bytes(10, seven_b()) == 60
    # 16 bytes a weight: three times float32, the teacher and the policy's folder in bfloat16.
    in_bfloat16 = shape(torch_dtype="bfloat16")
    assert memory_plan.checkpoint_bytes(in_bfloat16, seven_b()) / GB == pytest.approx(121.9, abs=0.1)
    assert memory_plan.checkpoint_bytes(shape(), seven_b()) / GB == pytest.approx(137.1, abs=0.1)
    assert memory_plan.disk_bytes(in_bfloat16, seven_b("checkpoint.keep=1")) / GB == pytest.approx(244, abs=1)
    # All but that folder is copied before it is written.
    assert in_gb(memory_plan.host_plan(in_bfloat16, seven_b()).parts)["a checkpoint being written"] == 106.6


def told(machine: Machine, *overrides: str) -> list[str]:
    found = judge_memory(shape(), seven_b(*overrides), machine)
    return [finding.text for finding in found if finding.verdict == "missing"]


def test_seven_b_fits_on_a_node_of_large_gpus():
    assert told(ROOMY) == []
    texts = [found.text for found in judge_memory(shape(), seven_b(), Machine())]
    assert texts[0].startswith("GPU of a learner: 50.1 GB in a forward and backward pass: weights 7.6, ")
    assert "a GPU of " in texts[1] and "is the least" in texts[1]


@pytest.mark.parametrize(
    ("machine", "overrides", "key"),
    [
        (ROOMY, ["learner.gradient_checkpointing=false"], "set learner.gradient_checkpointing: true"),
        (ROOMY, ["learner.micro_batch_tokens=98304"], "lower learner.micro_batch_tokens = 98304"),
        (ROOMY, ["learner.num_learners=1"], "are there: raise learner.num_learners"),
        (ROOMY, ["serving.gpu_memory_utilization=0.2"], "raise serving.tensor_parallel_size"),
        (ROOMY, ["serving.gpu_memory_utilization=0.99"], "lower serving.gpu_memory_utilization"),
        (Machine(memory=50 * GB), [], "a node with more"),
        (Machine(shared_memory=2.0**26), [], "--shm-size"),
        (Machine(disk=300 * GB), [], "lower checkpoint.keep"),
    ],
)
def test_what_does_not_fit_names_what_to_change(machine: Machine, overrides: list[str], key: str):
    (text,) = told(machine, *overrides)
    assert key in text


def test_a_learner_and_engines_that_share_a_gpu_must_fit_together():
    shared = ["serving.weight_transfer=ipc", "learner.num_learners=1", "serving.num_replicas=1"]
    shared += ["learner.num_gpus_per_learner=0.5", "serving.num_gpus_per_replica=0.5"]
    small = shape(num_hidden_layers=2, vocab_size=32000)
    kept = list(judge_memory(small, seven_b(*shared, "serving.gpu_memory_utilization=0.6"), ROOMY))
    assert {found.verdict for found in kept} == {"ok"}
    found = judge_memory(small, seven_b(*shared, "serving.gpu_memory_utilization=0.8"), ROOMY)
    (text,) = [one.text for one in found if one.verdict == "missing"]
    assert text.startswith("GPU that they share: ") and "lower serving.gpu_memory_utilization" in text


def test_a_learner_and_an_engine_of_1_5_b_share_one_large_gpu():
    config = SEVEN_B | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
    config |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936}
    small = ModelShape.of(config)
    one_gpu = load_experiment(EXPERIMENTS / "alfworld_qwen2.5_1.5b_one_gpu.yaml", [])
    assert {found.verdict for found in judge_memory(small, one_gpu, ROOMY)} == {"ok"}
    # 38.5 GB for the learner are 65 % of 59.3 GB.
    texts = [found.text for found in judge_memory(small, one_gpu, Machine())]
    shared = "GPU that they share: 38.5 GB for the learner and 35% of it for engines"
    assert f"{shared}; a GPU of 59.3 GB is the least" in texts


def test_engines_that_sleep_leave_the_gpu_to_the_update():
    config = SEVEN_B | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
    config |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936}
    small = ModelShape.of(config)
    asleep = ["serving.sleep_during_updates=true", "serving.gpu_memory_utilization=0.5"]
    one_gpu = load_experiment(EXPERIMENTS / "alfworld_qwen2.5_1.5b_one_gpu.yaml", asleep)
    shared = next(found.text for found in judge_memory(small, one_gpu, Machine()) if "share" in found.text)
    sending = memory_plan.learner_plans(small, one_gpu)[-1].total
    assert shared == (
        f"GPU that they share: {sending / GB:.1f} GB for the learner and 50% of it for engines, which sleep "
        f"while it takes 40.5 GB; a GPU of {2 * sending / GB:.1f} GB is the least"
    )


@pytest.mark.parametrize(
    ("shares", "nodes", "fits"),
    [
        ([4, 1, 1, 1, 1], [8], True),
        ([4, 4], [4, 4], True),
        ([4, 4], [6, 2], False),
        ([2, 1, 1], [2, 2], True),
        ([2, 2, 2], [3, 3], False),
        ([0.5, 0.5], [1], True),
        ([0.6, 0.6], [1], False),
        ([0.4, 0.4, 1], [2], True),
        ([0, 0], [], True),
    ],
)
def test_gpus_of_a_process_lie_on_one_node(shares: list[float], nodes: list[float], fits: bool):
    assert fit(shares, nodes) is fits

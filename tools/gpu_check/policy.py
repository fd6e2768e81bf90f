"""The policy that checks serve and train: a small Llama, another one for each seed, and its log-probs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from serl.config import ExperimentConfig
from serl.models.resolve import resolve_model

# Its tokenizer is that of the policy that ships with SERL.
_TOKENIZER_OF = "embedded:tiny_alfworld"
_VOCABULARY = 823
_DEVIATION = 0.15
MAX_MODEL_LEN = 512

# How far, in nats, a log-prob may lie from that of transformers in float32 on a processor.
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.25}
# By how much more those of other weights must miss it.
CONTRAST = 4.0


def make_policy(seed: int) -> LlamaForCausalLM:
    """In float32, its weights bfloat16 numbers: no rounding tells engines of either type apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    policy = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "norm" not in name:
                weight.normal_(0.0, _DEVIATION if "embed" in name else _DEVIATION / 2)
            weight.copy_(weight.bfloat16())
    return policy.eval()


def save_policy(folder: Path, seed: int) -> Path:
    """A folder that learners and replicas load."""
    shutil.copytree(resolve_model(_TOKENIZER_OF), folder)
    make_policy(seed).save_pretrained(folder)
    return folder


def make_experiment(model_dir: Path, num_gpus: float, **sections: dict[str, Any]) -> ExperimentConfig:
    """Of the policy in ``model_dir``; in bfloat16 if learner and replica have ``num_gpus`` each."""
    settings: dict[str, Any] = {
        "name": "gpu-check",
        "model": {
            "path": str(model_dir),
            "max_model_len": MAX_MODEL_LEN,
            "dtype": "bfloat16" if num_gpus else "float32",
        },
        "rollout": {"max_prompt_length": 256, "max_response_length": 256, "stop": ()},
        "serving": {
            "num_gpus_per_replica": num_gpus,
            "num_cpus_per_replica": 0,
            "gpu_memory_utilization": 0.3,
            "kv_cache_gib": 0.2,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 1024,
            "weight_transfer": "ipc" if num_gpus else "shared_memory",
        },
        "learner": {"num_gpus_per_learner": num_gpus, "num_cpus_per_learner": 0, "micro_batch_tokens": 2048},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    return ExperimentConfig.model_validate(settings)


@torch.no_grad()
def mismatch(
    policy: LlamaForCausalLM, prompt: list[int], response: list[int], logprobs: list[float]
) -> float:
    """The greatest distance of ``logprobs`` from those of ``policy``, in nats; 0 of an empty response."""
    logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    return max((expected - torch.tensor(logprobs)).abs().tolist(), default=0.0)

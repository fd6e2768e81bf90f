"""A tiny policy with a byte tokenizer, and groups of trajectories that it could have sampled."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from byte_tokenizers import byte_level
from trajectories import make_step, make_trajectory
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from envs.base import Task
from serl.algorithm import SERLConfig
from serl.batch.assemble import build_rows
from serl.batch.rows import TrainingRows
from serl.config import ExperimentConfig
from serl.learner.learner import SERLLearner
from serl.learner.learner_group import SERLLearnerGroup, UpdateHandle, UpdateResult
from serl.models.weights import named_weights
from serl.private import rllib
from serl.rollout.prompt import PromptEncoder
from serl.types import Step, TrajectoryGroup

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    meaning = {"eos_token": "<|end|>", "pad_token": "<|end|>", "additional_special_tokens": SPECIAL_TOKENS}
    return byte_level(SPECIAL_TOKENS, CHAT_TEMPLATE, **meaning)


def save_tiny_policy(folder: Path, tied: bool = True, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def experiment(model_dir: Path, **sections: dict[str, Any]) -> ExperimentConfig:
    settings: dict[str, Any] = {
        "name": "test",
        "model": {"path": str(model_dir)},
        "learner": {"lr": 1e-2, "micro_batch_tokens": 512, "weight_decay": 0.0},
        "hindsight": {"enabled": False},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    return ExperimentConfig.model_validate(settings)


def learner_config(model_dir: Path, **sections: dict[str, Any]) -> SERLConfig:
    return SERLConfig.from_experiment(experiment(model_dir, **sections), str(model_dir), str(model_dir))


def learner_group(model_dir: Path, **sections: dict[str, Any]) -> SERLLearnerGroup:
    return SERLLearnerGroup(config=learner_config(model_dir, **sections))


def rows_of(
    group: SERLLearnerGroup, groups: list[TrajectoryGroup], weights_seq_no: int = 0, **options: Any
) -> TrainingRows:
    """The rows that ``group``'s update ``weights_seq_no`` trains on."""
    encoder = PromptEncoder(byte_tokenizer())
    return build_rows(groups, group._experiment, encoder, weights_seq_no, **options)[0]


def started_update(
    group: SERLLearnerGroup, groups: list[TrajectoryGroup], weights_seq_no: int = 0, **options: Any
) -> UpdateHandle:
    """As the algorithm does it; the handle also has the metrics of the rows."""
    encoder = PromptEncoder(byte_tokenizer())
    rows, metrics = build_rows(groups, group._experiment, encoder, weights_seq_no, **options)
    handle = group.start_update(rows, weights_seq_no)
    handle.metrics.update(metrics)
    return handle


def finished_update(group: SERLLearnerGroup, handle: UpdateHandle, timeout_s: float = 120.0) -> UpdateResult:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = group.poll_update(handle, timeout_s=0.5)
        if result is not None:
            return result
    raise TimeoutError("the update did not finish")


def update(
    group: SERLLearnerGroup, groups: list[TrajectoryGroup], weights_seq_no: int = 0
) -> dict[str, float]:
    """What a learner in this process reports of an update."""
    return finished_update(group, started_update(group, groups, weights_seq_no)).metrics


def local_learner(group: SERLLearnerGroup) -> SERLLearner:
    return rllib.local_learner(group)


def weights(group: SERLLearnerGroup) -> dict[str, torch.Tensor]:
    """A copy of what a learner in this process has."""
    policy = local_learner(group).policy
    return {name: tensor.detach().clone() for name, tensor in named_weights(policy.model).items()}


def reference_logprobs(
    model_dir: Path, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0
) -> list[float]:
    """The response's log-probs in a plain transformers forward pass of this one sequence."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    return _scores(model, prompt_ids, response_ids, temperature)


def _scores(
    model: Any, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0
) -> list[float]:
    with torch.no_grad():
        found = distributions(model, prompt_ids, response_ids, temperature)
    return found.gather(1, torch.tensor(response_ids)[:, None])[:, 0].tolist()


def distributions(
    model: Any, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probs [response, vocabulary] of a plain transformers forward pass of one sequence."""
    logits = model(torch.tensor([prompt_ids + response_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def sampled_groups(
    model_dir: Path,
    rewards: list[list[float]],
    steps_per_trajectory: int = 2,
    feedback: str | None = "The action worked.",
    weights_seq_no: int = 0,
    seed: int = 0,
) -> list[TrajectoryGroup]:
    """One group per list of rewards; old log-probs are those of the policy in ``model_dir``."""
    tokenizer = byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    draw = random.Random(seed)
    groups = []
    for group_index, group_rewards in enumerate(rewards):
        task = Task(f"task{group_index}", "any")
        trajectories = []
        for rollout_index, reward in enumerate(group_rewards):
            steps = [
                _step(tokenizer, model, draw, f"room {group_index} {index}", feedback, weights_seq_no)
                for index in range(steps_per_trajectory)
            ]
            trajectories.append(make_trajectory(steps, reward, f"g{group_index}", rollout_index, task=task))
        groups.append(TrajectoryGroup(f"g{group_index}", task, trajectories))
    return groups


def _step(
    tokenizer: Any, model: Any, draw: random.Random, seen: str, feedback: str | None, weights_seq_no: int
) -> Step:
    messages = (
        {"role": "system", "content": "You act in a house."},
        {"role": "user", "content": f"{seen} {'x' * draw.randrange(12)}"},
    )
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(text, add_special_tokens=False)
    action = f"go to {draw.randrange(100)}"
    response = f"<action>{action}</action>"
    response_ids = tokenizer.encode(response, add_special_tokens=False)
    start = response.index(action)
    return make_step(
        response_ids,
        weights_seq_no,
        prompt_ids=prompt_ids,
        old_logprobs=_scores(model, prompt_ids, response_ids),
        action_mask=[start <= index < start + len(action) for index in range(len(response_ids))],
        messages=messages,
        response_text=response,
        anchor=seen,
        action=action,
        feedback=feedback,
        next_observation=f"{seen} after",
    )

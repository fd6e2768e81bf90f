"""A tiny policy with tied embeddings, its tokenizer, its log-probs by transformers, a deployment of it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from byte_tokenizers import BYTE_IDS, byte_level
from ray.serve._private.common import DeploymentID
from transformers import LlamaConfig, LlamaForCausalLM

from serl.config import ExperimentConfig, ModelSection, RolloutSection, ServingSection
from serl.gateway.client import GatewayClient
from serl.private.ray_serve import serve_controller
from serl.serving.client import PolicyClient
from serl.serving.names import ServingNames
from serl.serving.transfer.sender import Weights
from serl.serving.weight_store import live_actors
from serl.serving.weights import WeightPublisher
from serl.types import Completion, Sampling

T = TypeVar("T")
State = dict[str, torch.Tensor]

VOCAB_SIZE = 260
END = 256
CLOSE_ACTION = 257
MAX_MODEL_LEN = 256
PROMPT = list(range(40, 80))
START_TIMEOUT_S = 300.0
FREE = Sampling(temperature=1.0, max_tokens=12, stop=(), seed=None)


def make_policy(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_MODEL_LEN,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
        )
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.3 if "embed" in name else 0.15)
            # A direction that no layer touches and only the end token points against: no response ends
            # before a test wants it to.
            if "o_proj" in name or "down_proj" in name:
                parameter[0] = 0.0
        policy.model.embed_tokens.weight[:, 0] = 3.0
        policy.model.embed_tokens.weight[END, 0] = -3.0
    return policy.eval()


def make_repeating_policy() -> LlamaForCausalLM:
    """Says its last token again and again: layers add nothing, and each embedding matches itself best."""
    policy = make_policy(99)
    with torch.no_grad():
        policy.model.embed_tokens.weight.normal_(0.0, 2.0)
        for name, parameter in policy.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
    return policy


def save_tokenizer(folder: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}assistant: "
    fast = byte_level(["<|end|>", "</action>"], template, eos_token="<|end|>")
    assert fast.convert_tokens_to_ids(["<|end|>", "</action>"]) == [END, CLOSE_ACTION]
    fast.save_pretrained(folder)


def byte_id(text: str) -> int:
    """The token of one printable ASCII character."""
    return BYTE_IDS[text]


def reference_logprobs(
    policy: LlamaForCausalLM, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0
) -> torch.Tensor:
    with torch.no_grad():
        logits = policy(torch.tensor([prompt_ids + response_ids])).logits[0, len(prompt_ids) - 1 : -1]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(response_ids)[:, None])[:, 0]


def largest_mismatch(
    policy: LlamaForCausalLM, prompt_ids: list[int], completion: Completion, temperature: float = 1.0
) -> float:
    expected = reference_logprobs(policy, prompt_ids, completion.token_ids, temperature)
    return float((torch.tensor(completion.logprobs) - expected).abs().max())


@dataclasses.dataclass
class Deployment:
    """A running deployment, a client of it on its own loop, what it serves, and its gateway."""

    names: ServingNames
    client: PolicyClient
    publisher: WeightPublisher
    loop: asyncio.AbstractEventLoop
    policy: LlamaForCausalLM
    gateway: GatewayClient | None = None
    weights_seq_no: int = 0

    def run(self, awaitable: Awaitable[T], timeout_s: float = 120.0) -> T:
        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(timeout_s)

    def generate(self, prompt_ids: list[int], sampling: Sampling = FREE) -> Completion:
        return self.run(self.client.generate(prompt_ids, sampling, "session", 60.0))

    def publish(self, policy: LlamaForCausalLM) -> Any:
        self.weights_seq_no += 1
        stats = self.publisher.publish(Weights.of(policy.named_parameters()), self.weights_seq_no).stats
        self.policy = policy
        return stats

    def statistics(self) -> dict[str, int]:
        return self.run(self.client.statistics())


def experiment(**serving: Any) -> ExperimentConfig:
    return ExperimentConfig(
        name="serving-test",
        model=ModelSection(path="unused", max_model_len=MAX_MODEL_LEN),
        rollout=RolloutSection(stop=(), max_prompt_length=128, max_response_length=128),
        serving=ServingSection(
            kv_cache_gib=0.1, max_num_seqs=64, max_num_batched_tokens=512, num_cpus_per_replica=0, **serving
        ),
    )


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def replica_actors(names: ServingNames) -> list[str]:
    return [actor for actor in live_actors() if actor.startswith(f"SERVE_REPLICA::{names.application}#")]


def scale_to(names: ServingNames, num_replicas: int) -> None:
    policy = DeploymentID(name=names.deployment, app_name=names.application)
    scaled = serve_controller().update_deployment_replicas.remote(policy, num_replicas)
    ray.get(scaled, timeout=60.0)


def kill_replica(names: ServingNames) -> str:
    (name,) = replica_actors(names)
    ray.kill(ray.get_actor(name, namespace="serve"))
    return name


async def running_requests(client: PolicyClient) -> list[int]:
    """How many run in each replica."""
    replicas = client._get_handle().broadcast("statistics")
    return [replica["running_requests"] for replica in await replicas.results_async(timeout_s=60.0)]


async def ask_in_turns(
    client: PolicyClient, num_sessions: int, num_turns: int, sampling: Sampling
) -> list[tuple[list[int], Completion]]:
    """Prompts and answers of sessions side by side, each of which asks once it has the answer before."""

    async def ask(session: int) -> list[tuple[list[int], Completion]]:
        prompts = [[session, turn, *PROMPT] for turn in range(num_turns)]
        return [(prompt, await client.generate(prompt, sampling, str(session), 200.0)) for prompt in prompts]

    sessions = await asyncio.gather(*[ask(session) for session in range(num_sessions)])
    return [answer for session in sessions for answer in session]

"""From tasks to a policy folder: demonstrations, tokenizer, behaviour cloning, and a look at the result."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from envs.base import DemonstratingProvider
from serl.rollout.prompt import PromptEncoder
from tools.warm_start.behaviour_cloning import CloningSettings, EncodedDemonstration, clone
from tools.warm_start.demonstrations import Demonstration, DemonstrationSettings, demonstrate
from tools.warm_start.model import PolicyShape, build_policy
from tools.warm_start.playing import Played, PlaySettings, play_tasks
from tools.warm_start.tokenizer import END, PAD, build_tokenizer, token_id

logger = logging.getLogger(__name__)

REPORT_FILE = "warm_start.json"


@dataclass(frozen=True, slots=True)
class WarmStartSettings:
    """Everything a warm start depends on; the same settings give the same policy on the same machine.

    ``vocab_size`` bounds the tokenizer, ``num_tokenizer_demonstrations`` is how many it learns from.
    """

    seed: int = 0
    vocab_size: int = 900
    num_tokenizer_demonstrations: int = 20_000
    demonstrations: DemonstrationSettings = field(default_factory=DemonstrationSettings)
    shape: PolicyShape = field(default_factory=PolicyShape)
    cloning: CloningSettings = field(default_factory=CloningSettings)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A trained policy and what it took; times are CPU seconds."""

    policy: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    num_demonstrations: int
    num_tokens: int
    final_loss: float
    demonstration_seconds: float
    cloning_seconds: float


def warm_start(provider: DemonstratingProvider, split: str, settings: WarmStartSettings) -> WarmStart:
    """Trains on the tasks of ``split`` and on nothing else."""
    started = time.process_time()
    tasks = provider.task_set(split).tasks
    demonstrations = list(demonstrate(provider, tasks, settings.demonstrations, settings.seed))
    logger.info("%d demonstrations from %d tasks", len(demonstrations), len(tasks))
    tokenizer = build_tokenizer(
        _texts(demonstrations[: settings.num_tokenizer_demonstrations]),
        [*provider.prompt_phrases(), *_instructions(demonstrations)],
        settings.vocab_size,
        settings.shape.max_positions,
    )
    encoded = encode(demonstrations, tokenizer)
    num_tokens = sum(demonstration.num_tokens for demonstration in encoded)
    policy = build_policy(tokenizer, settings.shape, settings.seed)
    cloning_started = time.process_time()
    losses = clone(policy, encoded, settings.cloning, token_id(tokenizer, PAD), settings.seed)
    last = losses[-100:]
    return WarmStart(
        policy=policy,
        tokenizer=tokenizer,
        num_demonstrations=len(demonstrations),
        num_tokens=num_tokens,
        final_loss=sum(last) / len(last),
        demonstration_seconds=cloning_started - started,
        cloning_seconds=time.process_time() - cloning_started,
    )


def encode(
    demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerFast
) -> list[EncodedDemonstration]:
    """Prompts exactly as the env runner encodes them, responses with the end token behind them.

    Steps of a conversation are one sequence, in which each response is learned where it stands.
    """
    encoder = PromptEncoder(tokenizer)
    end, thought_end = token_id(tokenizer, END), token_id(tokenizer, "</think>")
    encoded: list[EncodedDemonstration] = []
    last_step: int | None = None
    for demonstration in demonstrations:
        prompt_ids = encoder.encode(demonstration.messages)
        response_ids = tokenizer.encode(demonstration.response, add_special_tokens=False)
        if demonstration.thought_is_given:
            behind = response_ids.index(thought_end) + 1
            prompt_ids, response_ids = prompt_ids + response_ids[:behind], response_ids[behind:]
        own = EncodedDemonstration.of(prompt_ids, [*response_ids, end])
        is_step = not demonstration.has_hindsight
        joined = encoded[last_step].joined_by(own) if is_step and last_step is not None else None
        if joined is not None and last_step is not None:
            encoded[last_step] = joined
            continue
        last_step = len(encoded) if is_step else last_step
        encoded.append(own)
    return encoded


def play_held_out(
    start: WarmStart,
    provider: DemonstratingProvider,
    split: str,
    num_tasks: int,
    settings: PlaySettings,
) -> Played:
    """The first ``num_tasks`` tasks of ``split`` (0: all), each once."""
    tasks = provider.task_set(split).tasks
    return play_tasks(start.policy, start.tokenizer, provider, tasks[: num_tasks or None], settings, seed=0)


def save(start: WarmStart, folder: Path) -> None:
    """Writes a Hugging Face folder: safetensors, tokenizer, chat template."""
    start.policy.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def save_report(start: WarmStart, settings: WarmStartSettings, held_out: Played, folder: Path) -> None:
    """Writes ``warm_start.json`` beside the policy: what it took and what it can do."""
    report = {
        "settings": asdict(settings),
        "num_demonstrations": start.num_demonstrations,
        "num_tokens": start.num_tokens,
        "num_parameters": sum(parameter.numel() for parameter in start.policy.parameters()),
        "final_loss": round(start.final_loss, 4),
        "demonstration_cpu_seconds": round(start.demonstration_seconds),
        "cloning_cpu_seconds": round(start.cloning_seconds),
        "held_out_evaluation": asdict(held_out),
    }
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _instructions(demonstrations: list[Demonstration]) -> list[str]:
    """What conversations begin with may be none of the provider's phrases."""
    messages = (message for demonstration in demonstrations for message in demonstration.messages)
    return list(dict.fromkeys(message["content"] for message in messages if message["role"] == "system"))


def _texts(demonstrations: list[Demonstration]) -> list[str]:
    return [
        text
        for demonstration in demonstrations
        for text in (demonstration.messages[-1]["content"], demonstration.response)
    ]

"""Plays tasks with a policy in this process, as env runners would, but without serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from envs.base import EnvProvider, Task
from serl.rollout.actions import ResponseAction
from serl.rollout.episode_prompts import PromptSettings, episode_prompts
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from tools.decoding import decode_side_by_side
from tools.warm_start.tokenizer import END, token_id


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """Lengths as in the sections ``env`` and ``rollout`` of an experiment."""

    max_steps: int
    prompts: PromptSettings
    temperature: float
    max_response_length: int


@dataclass(frozen=True, slots=True)
class Played:
    """Rates in [0, 1]; lengths are means per step, ``num_steps`` per episode."""

    success_rate: float
    success_by_type: dict[str, float]
    inadmissible_rate: float
    num_steps: float
    prompt_tokens: float
    response_tokens: float


class _Episode:
    """``ended`` also where no prompt fits any more."""

    def __init__(self, provider: EnvProvider, encoder: PromptEncoder, prompts: PromptSettings, task: Task):
        self.task = task
        self._encoder = encoder
        self._prompts = episode_prompts(provider, encoder, prompts, f"task {task.task_id!r}")
        self.env = provider.make_env()
        self.state = EpisodeState(*self.env.reset(options={"task_id": task.task_id}))
        self.num_inadmissible = 0
        self.ended = False

    def prompt(self) -> list[int] | None:
        """Ids of the next prompt; None if the episode has ended."""
        prompt = None if self.state.ended else self._prompts.next(self.state)
        self.ended = prompt is None
        return None if prompt is None else prompt.token_ids

    def act(self, response_ids: list[int]) -> None:
        self._prompts.answered(response_ids)
        action = ResponseAction.of(self._encoder.decode(response_ids))
        self.state.advance(action.sent, self.env.step(action.sent))
        self.num_inadmissible += not action.is_valid(self.state.info)


def play_tasks(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    provider: EnvProvider,
    tasks: Sequence[Task],
    settings: PlaySettings,
    seed: int,
) -> Played:
    """Plays every task once, all episodes side by side, sampling at ``temperature``."""
    encoder = PromptEncoder(tokenizer)
    episodes = [_Episode(provider, encoder, settings.prompts, task) for task in tasks]
    generator = torch.Generator().manual_seed(seed)
    num_prompt_tokens = num_response_tokens = 0
    policy.eval()
    for _ in range(settings.max_steps):
        asked = [
            (episode, prompt)
            for episode in episodes
            if not episode.ended and (prompt := episode.prompt()) is not None
        ]
        if not asked:
            break
        prompts = [prompt for _, prompt in asked]
        responses = sample_responses(policy, tokenizer, prompts, settings, generator)
        for (episode, _), response_ids in zip(asked, responses, strict=True):
            episode.act(response_ids)
        num_prompt_tokens += sum(map(len, prompts))
        num_response_tokens += sum(map(len, responses))
    num_steps = sum(len(episode.state.turns) for episode in episodes)
    return Played(
        success_rate=_success_rate(episodes),
        success_by_type={
            task_type: _success_rate([e for e in episodes if e.task.task_type == task_type])
            for task_type in sorted({task.task_type for task in tasks})
        },
        inadmissible_rate=sum(episode.num_inadmissible for episode in episodes) / num_steps,
        num_steps=num_steps / len(episodes),
        prompt_tokens=num_prompt_tokens / num_steps,
        response_tokens=num_response_tokens / num_steps,
    )


def sample_responses(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    settings: PlaySettings,
    generator: torch.Generator,
) -> list[list[int]]:
    """One response per prompt, ending at ``</action>`` or the end token, which belong to it."""
    stops = {token_id(tokenizer, END), token_id(tokenizer, "</action>")}

    def sample(logits: Tensor) -> Tensor:
        chances = torch.softmax(logits / settings.temperature, dim=-1)
        return torch.multinomial(chances, 1, generator=generator)

    max_tokens = settings.max_response_length
    return decode_side_by_side(policy, prompts, max_tokens, sample, lambda response: response[-1] in stops)


def _success_rate(episodes: Sequence[_Episode]) -> float:
    return sum(episode.state.success for episode in episodes) / len(episodes)

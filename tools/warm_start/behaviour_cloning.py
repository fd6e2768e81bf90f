"""Behaviour cloning: maximum likelihood of the demonstrated responses, and a little of their prompts."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from transformers import LlamaForCausalLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedDemonstration:
    """Tokens as the rollout has them; ``is_response`` marks those to learn, end tokens included."""

    token_ids: list[int]
    is_response: list[bool]

    @classmethod
    def of(cls, prompt_ids: list[int], response_ids: list[int]) -> Self:
        is_response = [False] * len(prompt_ids) + [True] * len(response_ids)
        return cls(prompt_ids + response_ids, is_response)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def joined_by(self, next_one: EncodedDemonstration) -> EncodedDemonstration | None:
        """Both as one, where the next begins with all tokens of this; None where it does not."""
        end = self.num_tokens
        if next_one.token_ids[:end] != self.token_ids:
            return None
        return EncodedDemonstration(next_one.token_ids, self.is_response + next_one.is_response[end:])


@dataclass(frozen=True, slots=True)
class CloningSettings:
    """One pass over the demonstrations by AdamW with a linear warm-up and a cosine to a tenth of ``lr``.

    ``prompt_loss_weight`` is the weight of the mean loss over prompt tokens: what a prompt repeats teaches
    copying, which the responses need, from ten times as many tokens.
    """

    lr: float = 2e-3
    prompt_loss_weight: float = 0.2
    batch_size: int = 16
    num_epochs: int = 1
    warmup_updates: int = 50
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    log_interval: int = 200


def clone(
    policy: LlamaForCausalLM,
    demonstrations: Sequence[EncodedDemonstration],
    settings: CloningSettings,
    pad_token_id: int,
    seed: int,
) -> list[float]:
    """Trains ``policy`` in place and returns every update's loss on the responses (nats)."""
    batches = list(_batches(demonstrations, settings, random.Random(seed)))
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    policy.train()
    losses: list[float] = []
    started = time.perf_counter()
    for update, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * learning_rate_scale(update, len(batches), settings.warmup_updates)
        loss, prompt_loss = token_losses(policy, batch, pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        (loss + settings.prompt_loss_weight * prompt_loss).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.grad_clip)
        optimizer.step()
        losses.append(loss.item())
        if (update + 1) % settings.log_interval == 0:
            recent = losses[-settings.log_interval :]
            logger.info(
                "update %d of %d: loss %.3f, %.0f s",
                update + 1,
                len(batches),
                sum(recent) / len(recent),
                time.perf_counter() - started,
            )
    return losses


def learning_rate_scale(update: int, num_updates: int, warmup_updates: int) -> float:
    """The factor on the learning rate: linear from 0 to 1, then a half cosine from 1 to 0.1."""
    if update < warmup_updates:
        return (update + 1) / warmup_updates
    progress = (update - warmup_updates) / max(1, num_updates - warmup_updates)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def token_losses(
    policy: LlamaForCausalLM, batch: Sequence[EncodedDemonstration], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the response tokens of ``batch``, and over its prompt tokens (nats)."""
    length = max(demonstration.num_tokens for demonstration in batch)
    input_ids = torch.full((len(batch), length), pad_token_id)
    is_token = torch.zeros((len(batch), length), dtype=torch.bool)
    is_response = torch.zeros((len(batch), length), dtype=torch.bool)
    for row, demonstration in enumerate(batch):
        end = demonstration.num_tokens
        input_ids[row, :end] = torch.tensor(demonstration.token_ids)
        is_token[row, :end] = True
        is_response[row, :end] = torch.tensor(demonstration.is_response)
    # Padding is on the right: causal attention never lets a real token see it, so no mask is needed.
    hidden = policy.model(input_ids=input_ids, use_cache=False).last_hidden_state
    logits = policy.lm_head(hidden[:, :-1][is_token[:, 1:]])
    targets = input_ids[:, 1:][is_token[:, 1:]]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    of_response = is_response[:, 1:][is_token[:, 1:]]
    return losses[of_response].mean(), losses[~of_response].mean()


def _batches(
    demonstrations: Sequence[EncodedDemonstration], settings: CloningSettings, rng: random.Random
) -> Iterator[list[EncodedDemonstration]]:
    """Shuffled batches of similar lengths: sorting windows of 32 batches keeps padding small."""
    for _ in range(settings.num_epochs):
        order = list(demonstrations)
        rng.shuffle(order)
        window = 32 * settings.batch_size
        batches: list[list[EncodedDemonstration]] = []
        for start in range(0, len(order), window):
            chunk = sorted(order[start : start + window], key=lambda demonstration: demonstration.num_tokens)
            batches += [
                chunk[at : at + settings.batch_size] for at in range(0, len(chunk), settings.batch_size)
            ]
        rng.shuffle(batches)
        yield from batches

"""Sampling responses with a model in this process, many side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def decode_side_by_side(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sample: Callable[[Tensor], Tensor],
    has_ended: Callable[[Sequence[int]], bool],
) -> list[list[int]]:
    """One response per prompt, of at most ``max_tokens`` ids, its last one included.

    ``sample`` is given logits [prompts, vocabulary], those of ended responses too, and returns ids
    [prompts, 1]; ``has_ended`` is asked of a response so far.
    """
    length, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    responses: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    cache = None
    for _ in range(max_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        ids = sample(output.logits[:, -1])
        for row, token in enumerate(ids[:, 0].tolist()):
            if row in going:
                responses[row].append(token)
                if has_ended(responses[row]):
                    going.remove(row)
        if not going:
            break
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return responses

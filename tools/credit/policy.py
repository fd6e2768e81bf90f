"""A policy in this process: it samples responses as an engine would, and scores actions as a teacher does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from serl.config import ExperimentConfig
from serl.learner.token_batch import Ids, make_token_batch
from serl.learner.token_scores import score_tokens
from serl.models.weights import load_model
from serl.rollout.prompt import PromptEncoder
from tools.decoding import decode_side_by_side

# Prompts sampled side by side, and tokens of a scored batch, padding included.
_NUM_SIDE_BY_SIDE = 64
_BATCH_TOKENS = 2048
# Parameters below which threads wait for one another longer than they compute.
_SMALL = 10_000_000
# Of the end of a response, in which a text that ends it is looked for.
_STOP_TOKENS = 32


class Policy:
    """``model`` is a causal language model of transformers; ``seed`` decides what is sampled."""

    def __init__(self, model: Any, encoder: PromptEncoder, config: ExperimentConfig, seed: int) -> None:
        self.model = model.eval()
        self.encoder = encoder
        self._rollout = config.rollout
        self._generator = torch.Generator(model.device).manual_seed(seed)
        ends = getattr(model, "generation_config", model.config).eos_token_id
        self._end_ids = {ends} if isinstance(ends, int) else set(ends or ())
        self._predictors: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._keep_predictors)

    @classmethod
    def load(cls, model_dir: Path, config: ExperimentConfig, seed: int) -> Self:
        """The policy in a Hugging Face folder, in float32, on a GPU if there is one."""
        model = load_model(str(model_dir))
        if model.num_parameters() < _SMALL:
            torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), PromptEncoder.load(str(model_dir)), config, seed)

    def respond(
        self, prompts: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[list[int], list[float]]]:
        """Of each prompt, sampled ids, the end included, and their natural log-probs at ``temperature``."""
        # Neighbours in length are padded little.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        found: dict[int, tuple[list[int], list[float]]] = {}
        for start in range(0, len(order), _NUM_SIDE_BY_SIDE):
            chosen = order[start : start + _NUM_SIDE_BY_SIDE]
            responses = self._respond_side_by_side([prompts[index] for index in chosen], temperature)
            found.update(zip(chosen, responses, strict=True))
        return [found[index] for index in range(len(prompts))]

    def _respond_side_by_side(
        self, prompts: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[list[int], list[float]]]:
        logprobs: list[list[float]] = []  # by position in the responses, then by prompt

        def sample(logits: Tensor) -> Tensor:
            ids, of_ids = self._sample(logits.float(), temperature)
            logprobs.append(of_ids.tolist())
            return ids

        max_tokens = self._rollout.max_response_length
        responses = decode_side_by_side(self.model, prompts, max_tokens, sample, self._has_ended)
        return [
            (response, [logprobs[position][row] for position in range(len(response))])
            for row, response in enumerate(responses)
        ]

    def _sample(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Ids [rows, 1] and their log-probs [rows]; temperature 0 takes the likeliest."""
        if temperature == 0.0:
            ids = logits.argmax(-1, keepdim=True)
            return ids, logits.log_softmax(-1).gather(1, ids)[:, 0]
        distribution = (logits / temperature).log_softmax(-1)
        ids = torch.multinomial(distribution.exp(), 1, generator=self._generator)
        return ids, distribution.gather(1, ids)[:, 0]

    def _has_ended(self, response_ids: Sequence[int]) -> bool:
        text = self.encoder.decode(response_ids[-_STOP_TOKENS:])
        return response_ids[-1] in self._end_ids or any(stop in text for stop in self._rollout.stop)

    @torch.no_grad()
    def action_logprobs(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[int]],
        action_masks: Sequence[Sequence[bool]],
    ) -> list[Tensor]:
        """For each prompt the log-probs of its response's action tokens, at the temperature of sampling.

        As `serl.learner.teacher` scores them: the very ids that were sampled, all on the CPU.
        """
        found: dict[int, Tensor] = {}
        for rows in _batches([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]):
            batch = make_token_batch(
                [prompts[row] for row in rows],
                [responses[row] for row in rows],
                [action_masks[row] for row in rows],
                layout="padded",
                device=self.model.device,
            )
            self._predictors = batch.predictor_positions
            try:
                logits = self.model(input_ids=batch.input_ids, use_cache=False).logits
            finally:
                self._predictors = None
            scores = score_tokens(logits, batch.targets, self._rollout.temperature)
            counts = [int(np.count_nonzero(action_masks[row])) for row in rows]
            found.update(zip(rows, scores.logprobs.cpu().split(counts), strict=True))
        return [found[row] for row in range(len(prompts))]

    def _keep_predictors(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Makes logits of the positions that predict a scored token only: those of all may not fit."""
        if self._predictors is None:
            return arguments
        return (arguments[0].flatten(0, 1)[self._predictors],)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of similar length together, as many as `_BATCH_TOKENS` allow, but at least one."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and lengths[row] * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
